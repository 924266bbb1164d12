"""What a saved state has to agree with before it is resumed: model, data, settings, code, by name.

Every setting that changes what a run computes is a separate entry, so that the one that differs
is named. Settings that only say where things are, what is shown, or what is exported are not here.
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
"""Settings whose effect is in other entries, or that have none on the numbers beyond rounding."""

_MEMORY_ONLY = {
    f"training.{name}"
    for name in (
        "gradient_checkpointing", "checkpointed_levels", "ema_on_cpu", "cache_text_to_disk",
    )
}  # fmt: skip
"""Settings of where and when the same numbers are computed: they may change, which is told."""

_SUPERFLUOUS = ("_", "transformers_version", "torch_dtype", "dtype", "architectures")
_ABSENT = "absent"

_BEST_FOLLOWS = "validation.every_steps"
"""The setting that says which model is the best one: compared where both keep the best."""

_CAPTIONS_FOLLOW = "steps in all (token_warmup_step is a share of them)"
"""Of states that say it; earlier ones do not."""

_FROM_A_STEP_ON = {"method.text_encoder_from_step", "method.text_encoder_until_step"}
"""Settings that name the step at which something changes: only what is behind a state is compared,
so that a run may go on with another one that lies ahead."""

GIVEN = " (given in code)"
"""What the name of a part that is given in code ends with."""

TEXT_FILES = "text encoder outputs in files"
"""The entry that says what is in the files which `training.text_from_npz` uses, as JSON."""


@dataclass(frozen=True)
class Facts:
    """What a run is made of besides its settings.

    Attributes:
        hashes: Network -> a hash of its weights as they were loaded.
        contents: Of the base model.
        training: The images that are trained on.
        held_out: Those that are not.
        num_processes: Processes that share each step.
        total_steps: Steps of the whole run.
        code: What is given in code in the place of a setting, by name; see `Overrides`.
        digests: Gives hashes of what is in files, of those that can be read.
        texts: `GivenTexts.recorded` of text encoder outputs that are taken from files.
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
    """The fingerprint of a run: what a state has to agree with to be resumed, as texts by name."""
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
    """What is given in code, by name: what a run has to be given again to be resumed."""
    return {f"{n}{GIVEN}": described(part, learns=n == "trainable") for n, part in code.items()}


def settings_fingerprint(config: RunConfig) -> dict[str, str]:
    """The settings that change what a run computes, by path."""
    return {
        path: json.dumps(value) for path, value in settings_by_path(config).items() if _counts(path)
    }


_SHOWN_NAMES = {"data set": "dataset"}
"""The names that people are shown for names in states; `dataset` is a section of old ones."""


def differences(
    saved: Mapping[str, str], current: Mapping[str, str], done: int | None = None
) -> list[str]:
    """What differs and must not, each as a phrase with what it was and what it is.

    A state of an earlier version says less: what it does not say is not compared, and a setting
    that it did not have was as it is by default now, or as `FORMER_VALUES` says.

    Args:
        saved: The fingerprint of a state.
        current: That of the run as it would go on.
        done: The steps that are in the state; None compares what is ahead of it too.
    """
    found = _differing(saved, current, done)
    return _named_once([pair for pair in found if pair[0] not in _MEMORY_ONLY])


def changes_of_rounding(saved: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """What differs and may: the numbers are the same then up to rounding; phrases as before."""
    return [text for name, text in _differing(saved, current) if name in _MEMORY_ONLY]


def _differing(
    saved: Mapping[str, str], current: Mapping[str, str], done: int | None = None
) -> Iterator[tuple[str, str]]:
    """All names that differ, each with a phrase."""
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
    """The phrases, of a setting of the dataset that changed alike in all its levels the highest."""
    changes: dict[tuple[str, str], str] = {}
    for name, text in sorted(found, key=lambda pair: pair[0].count(".")):
        setting = name.rpartition(".")[2] if name.startswith("dataset.") else name
        changes.setdefault((setting, text.removeprefix(name)), text)
    return [text for _, text in found if text in changes.values()]


def recorded_texts(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """What a fingerprint records of text encoder outputs in files; see `GivenTexts.recorded`."""
    try:
        recorded = parse_json(fingerprint.get(TEXT_FILES, "{}"))
    except ValueError:
        return {}  # a damaged state, which is named when it is restored
    return {str(k): str(v) for k, v in recorded.items()} if isinstance(recorded, dict) else {}


def _changed_files(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A phrase that names the files which were lost, gained or changed; none if none was."""
    hashes = [{key: of.partition(" ")[0] for key, of in each.items()} for each in (was, now)]
    changed = [key for key in was.keys() & now.keys() if hashes[0][key] != hashes[1][key]]
    named = (
        ("no longer used", [was[key] for key in was.keys() - now.keys()]),
        ("used now and not before", [now[key] for key in now.keys() - was.keys()]),
        ("of other content", [now[key] for key in changed]),
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
    """The item of a list of sections that a setting is in, as in `dataset.datasets[0]`."""
    return path.rpartition(".")[0] if "[" in path else ""


def _unnumbered(path: str) -> str:
    """A path without the numbers of items: what such a setting is by default is one for all."""
    return re.sub(r"\[\d+\]", "", path)


def _is_ahead(done: int | None, *steps: str) -> bool:
    """Whether steps, as JSON where null is never, are none of those that are done."""
    return done is not None and all(of in {"null", _ABSENT} or int(of) >= done for of in steps)


def _is_same(one: str, other: str) -> bool:
    """Whether two texts say the same; 1 and 1.0 in lists do."""
    if one.startswith("[") and other.startswith("["):
        return bool(parse_json(one) == parse_json(other))
    return one == other


def _is_compared(name: str) -> bool:
    """Whether a name of a state is no setting, or one that still counts."""
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
    """The scheduler's configuration of the schedule that a model is trained with."""
    changes = ZERO_TERMINAL_SNR if config.noise.zero_terminal_snr else {}
    return {**contents.scheduler_config, **changes}


def _model_facts(contents: ModelContents, scheduler: Mapping[str, Any]) -> dict[str, str]:
    """Configurations and vocabulary of the base model, by name."""
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
    """What a step is made of; another cut into processes and accumulation does the same."""
    total = num_processes * config.training.gradient_accumulation_steps
    shares = config.dataset.batch_order == "proportional"  # each process draws by itself
    return f"{total} on {num_processes} processes" if shares else str(total)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
