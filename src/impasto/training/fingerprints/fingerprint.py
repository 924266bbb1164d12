"""The fingerprint that a saved state must match to be resumed: model, data, settings and code.

Every setting that changes what a run computes is a separate entry, so that a message can name the
one that differs. Settings that only affect paths, display or exports are left out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto.config.dataset import DatasetEntry, SubsetConfig
from impasto.config.former import FORMER_VALUES
from impasto.config.kinds import defaults_of
from impasto.config.load import settings_by_path
from impasto.config.method import METHODS
from impasto.config.objective import LOSSES
from impasto.config.run import RunConfig
from impasto.data.caching.latent_cache import CachedPlan
from impasto.data.records import FileStamp
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.pipeline_files import ZERO_TERMINAL_SNR
from impasto.parsing import parse_json
from impasto.training.builders.methods import build_templates
from impasto.training.fingerprints.code_identity import described, is_same_code, names_shown
from impasto.training.fingerprints.data_fingerprint import data_fingerprint
from impasto.training.fingerprints.former_fingerprint import SECTIONS, as_named_now, is_of_sections

_SECTIONS = {
    "seed", "model", "dataset", "method", "optimizer", "schedule", "loss", "noise",
    "timesteps", "training", "validation",
}  # fmt: skip
_ELSEWHERE = {
    "model": {"path", "vae", "variant", "weights", "family", "prediction_type"},
    "dataset": {
        "image_dir", "metadata_file", "mask_dir", "recursive", "cache_dir", "vae_batch_size",
        "decode_workers", "on_error", "executor", "ray_address", "image_column",
        "caption_column",
    },
    "method": {"templates", "template_file", "start_from", "info"},
    "training": {
        "max_steps", "max_epochs", "text_cache_mib", "memory", "fit_check",
        "gradient_accumulation_steps", "offload_optimizer", "weight_copies",
        "stream_weights", "cuda_graphs",
    },
    "validation": {"image_dir", "every_steps", "training_images", "by", "by_images"},
}  # fmt: skip
"""Settings that are left out: other entries cover their effect, or they change only rounding."""

_MEMORY_ONLY = {
    f"training.{name}"
    for name in (
        "gradient_checkpointing", "checkpointed_levels", "ema_on_cpu", "cache_text_to_disk",
    )
}  # fmt: skip
"""Settings of where and when the same numbers are computed: they may change, with a note."""

_SUPERFLUOUS = ("_", "transformers_version", "torch_dtype", "dtype", "architectures")
_ABSENT = "absent"

_BEST_FOLLOWS = "validation.every_steps"
"""The setting that decides which model is best: compared only if both runs keep the best model."""

_CAPTIONS_FOLLOW = "steps in all (token_warmup_step is a share of them)"
"""An entry that states of earlier versions lack; compared only if both have it."""

_FROM_A_STEP_ON = {"method.text_encoder_from_step", "method.text_encoder_until_step"}
"""Settings that name the step at which something changes: compared only if the step is in the past
of the state, so that a resumed run may move a step that is still ahead."""

GIVEN = " (given in code)"
"""Suffix of the entry names of parts given in code."""

TEXT_FILES = "text encoder outputs in files"
"""The entry that records the contents of the files that `training.text_from_npz` uses, as JSON."""


@dataclass(frozen=True)
class Facts:
    """The facts about a run, beside its settings, that go into its fingerprint.

    Attributes:
        hashes: Network -> a hash of its weights as loaded.
        contents: The contents of the base model.
        training: The training images.
        held_out: The held-out images; None if there are none.
        num_processes: Number of processes that share each step.
        total_steps: Number of steps of the whole run.
        code: The parts given in code instead of by settings, by name; see `Overrides`.
        digests: Returns the content hashes of files, of those that can be read.
        texts: `GivenTexts.recorded` of the text encoder outputs that are read from files.
    """

    hashes: Mapping[str, str]
    contents: ModelContents
    training: CachedPlan
    held_out: CachedPlan | None
    num_processes: int
    total_steps: int
    code: Mapping[str, Any]
    digests: Callable[[Mapping[Path, FileStamp]], Mapping[Path, str]]
    texts: Mapping[str, str] = field(default_factory=dict)


def run_fingerprint(config: RunConfig, facts: Facts) -> dict[str, str]:
    """Return the fingerprint of a run, as name -> text; a state must match it to be resumed."""
    unet = facts.contents.identity.family.unet.name
    found = {
        "base model": facts.hashes[unet],
        **{f"{name} of the base model": h for name, h in facts.hashes.items() if name != unet},
        **_model_facts(facts.contents, _trained_with(config, facts.contents)),
        "data set": data_fingerprint(facts.training, facts.digests),
        "forward passes per step": _passes(config, facts.num_processes),
        **settings_fingerprint(config),
        **code_fingerprint(facts.code),
    }
    if facts.held_out is not None:
        found["validation images"] = data_fingerprint(facts.held_out, facts.digests)
        if config.keeps_best:
            found[_BEST_FOLLOWS] = str(config.validation.every_steps)
    if facts.texts:
        found[TEXT_FILES] = json.dumps(facts.texts)
    templates = build_templates(config)
    if templates is not None:
        found["caption templates"] = _short_hash(repr((templates.lines, templates.name)))
    if config.schedule.depends_on_length or "lr_schedule" in facts.code:
        found["steps in all (the learning rate follows them)"] = str(facts.total_steps)
    subsets = [subset for entry in config.dataset.entries for subset in entry.subsets]
    if any(0 < subset.token_warmup_step < 1 for subset in subsets):
        found[_CAPTIONS_FOLLOW] = str(facts.total_steps)
    return found


def code_fingerprint(code: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of parts given in code, which a run must be given again to be resumed."""
    return {f"{n}{GIVEN}": described(part, learns=n == "trainable") for n, part in code.items()}


def settings_fingerprint(config: RunConfig) -> dict[str, str]:
    """Return the settings that change what a run computes, as path -> JSON."""
    return {
        path: json.dumps(value) for path, value in settings_by_path(config).items() if _counts(path)
    }


_SHOWN_NAMES = {"data set": "dataset"}
"""Name of an entry in states -> the name in messages; in old states `dataset` is a section."""


def differences(
    saved: Mapping[str, str], current: Mapping[str, str], done: int | None = None
) -> list[str]:
    """Return the differences that prevent resuming, each as a phrase with old and new value.

    A state of an earlier version has fewer entries: missing facts are not compared, and a missing
    setting counts as having its current default, or the value in `FORMER_VALUES`.

    Args:
        saved: The fingerprint of a state.
        current: The fingerprint of the run that would be resumed.
        done: Number of steps completed in the state; None also compares settings whose effect is at
            a later step.
    """
    found = _differing(saved, current, done)
    return _named_once([pair for pair in found if pair[0] not in _MEMORY_ONLY])


def changes_of_rounding(saved: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return the differences of settings that change results only by rounding, as phrases."""
    return [text for name, text in _differing(saved, current) if name in _MEMORY_ONLY]


def _differing(
    saved: Mapping[str, str], current: Mapping[str, str], done: int | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry that differs, with a phrase for messages."""
    is_old, renamed = is_of_sections(saved), as_named_now(saved)
    before = {n: value for n, value in renamed.items() if n in current or _is_compared(n)}
    usual = _usual_settings()
    listed = {_section_of(name) for name in before} & {_section_of(name) for name in current}
    for name in sorted(before.keys() | current.keys()):
        was, now = before.get(name), current.get(name)
        if name in {_BEST_FOLLOWS, _CAPTIONS_FOLLOW} and None in (was, now):
            continue
        if was is None and is_old and name.partition(".")[0] not in SECTIONS:
            continue
        default = usual.get(_unnumbered(name) if _section_of(name) in listed else name, _ABSENT)
        was, now = (default if value is None else value for value in (was, now))
        if name in _FROM_A_STEP_ON and _is_ahead(done, was, now):
            continue
        if name == TEXT_FILES:
            for text in _changed_files(recorded_texts(before), recorded_texts(current)):
                yield name, text
        elif not (is_same_code if name.endswith(GIVEN) else _is_same)(was, now):
            shown = names_shown if name.endswith(GIVEN) else _values_shown
            yield name, f"{_SHOWN_NAMES.get(name, name)} ({shown(was, now)})"


def _named_once(found: list[tuple[str, str]]) -> list[str]:
    """Return the phrases; if a dataset setting changed alike in all its levels, the highest one."""
    changes: dict[tuple[str, str], str] = {}
    for name, text in sorted(found, key=lambda pair: pair[0].count(".")):
        setting = name.rpartition(".")[2] if name.startswith("dataset.") else name
        changes.setdefault((setting, text.removeprefix(name)), text)
    return [text for _, text in found if text in changes.values()]


def recorded_texts(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Return a fingerprint's `GivenTexts.recorded`; empty if it has none or a damaged one."""
    try:
        recorded = parse_json(fingerprint.get(TEXT_FILES, "{}"))
    except ValueError:
        return {}  # a damaged state, which is reported when it is restored
    return {str(k): str(v) for k, v in recorded.items()} if isinstance(recorded, dict) else {}


def _changed_files(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return one phrase that names the lost, gained or changed files; an empty list if none."""
    hashes = [{key: of.partition(" ")[0] for key, of in each.items()} for each in (was, now)]
    changed = [key for key in was.keys() & now.keys() if hashes[0][key] != hashes[1][key]]
    named = (
        ("no longer used", [was[key] for key in was.keys() - now.keys()]),
        ("used now but not before", [now[key] for key in now.keys() - was.keys()]),
        ("with changed content", [now[key] for key in changed]),
    )
    told = []
    for text, entries in named:
        if entries:
            names = sorted(entry.partition(" ")[2] for entry in entries)
            more = ", ..." if len(names) > _NAMED else ""
            told.append(f"{len(names):,} {text}: {', '.join(names[:_NAMED])}{more}")
    return [f"{TEXT_FILES} ({'; '.join(told)})"] if told else []


_NAMED = 3


def _section_of(path: str) -> str:
    """Return the list item that a setting is in, such as `dataset.datasets[0]`; "" if in none."""
    return path.rpartition(".")[0] if "[" in path else ""


def _unnumbered(path: str) -> str:
    """Return a path without the indexes of list items, whose settings all have the same default."""
    return re.sub(r"\[\d+\]", "", path)


def _is_ahead(done: int | None, *steps: str) -> bool:
    """Return whether all steps (JSON; null is never) are ahead of `done`; False if it is None."""
    return done is not None and all(of in {"null", _ABSENT} or int(of) >= done for of in steps)


def _is_same(one: str, other: str) -> bool:
    """Return whether two values are equal; lists are compared as JSON, so that 1 equals 1.0."""
    if one.startswith("[") and other.startswith("["):
        return bool(parse_json(one) == parse_json(other))
    return one == other


def _is_compared(name: str) -> bool:
    """Return whether an entry of a state is compared: it is not a setting, or one that counts."""
    return name == _BEST_FOLLOWS or name.partition(".")[0] not in _SECTIONS or _counts(name)


def _counts(path: str) -> bool:
    names = [re.sub(r"\[\d+\]", "", name) for name in path.split(".")]
    return names[0] in _SECTIONS and not _ELSEWHERE.get(names[0], set()) & set(names[1:])


@functools.cache
def _usual_settings() -> dict[str, str]:
    required: dict[str, Any] = {
        "output_dir": "run",
        "model": {"path": "base"},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1},
    }
    usual = settings_fingerprint(RunConfig.model_validate(required))
    item = DatasetEntry(subsets=(SubsetConfig(image_dir=Path()),)).model_dump(mode="json")
    listed = {"dataset.datasets": item, "dataset.datasets.subsets": item.pop("subsets")[0]}
    for path, values in listed.items():
        usual |= {f"{path}.{name}": json.dumps(value) for name, value in values.items()}
    for section, kinds in (("method", METHODS), ("loss", LOSSES)):
        for name, value in defaults_of(kinds).items():
            usual.setdefault(f"{section}.{name}", json.dumps(value))
    former = {path: json.dumps(value) for path, value in FORMER_VALUES.items() if path in usual}
    return usual | former


def _values_shown(was: str, now: str) -> str:
    return f"was {_shown(was)}, is {_shown(now)}"


def _shown(value: str) -> str:
    if value == "null":
        return "off"
    return value if len(value) <= 60 else f"{value[:60]}..."


def _trained_with(config: RunConfig, contents: ModelContents) -> dict[str, Any]:
    """Return the scheduler configuration of the noise schedule that the run trains with."""
    changes = ZERO_TERMINAL_SNR if config.noise.zero_terminal_snr else {}
    return {**contents.scheduler_config, **changes}


def _model_facts(contents: ModelContents, scheduler: Mapping[str, Any]) -> dict[str, str]:
    """Return the base model's configurations, family, prediction and tokenizer hash, by name."""
    named = {
        f"{component} configuration": dict(config) for component, config in contents.configs.items()
    }
    named["scheduler configuration"] = dict(scheduler)
    facts = {
        f"{name}: {key}": json.dumps(value, sort_keys=True)
        for name, config in named.items()
        for key, value in config.items()
        if not key.startswith(_SUPERFLUOUS)
    }
    vocabulary = hashlib.sha256()
    for files in contents.tokenizer_files.values():
        for name, content in sorted(files.items()):
            vocabulary.update(f"{name}:{len(content)}:".encode())
            vocabulary.update(content)
    identity = contents.identity
    return facts | {
        "family of the base model": identity.family.name,
        "prediction of the base model": identity.prediction.name,
        "tokenizer of the base model": vocabulary.hexdigest()[:16],
    }


def _passes(config: RunConfig, num_processes: int) -> str:
    """Return the forward passes per step of all processes; how they are divided does not matter."""
    total = num_processes * config.training.gradient_accumulation_steps
    is_by_process = config.dataset.batch_order == "proportional"  # each process draws by itself
    return f"{total} on {num_processes} processes" if is_by_process else str(total)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
