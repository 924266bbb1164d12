"""`--resume` of sd-scripts' commands: continues a run with the other given flags applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto import presence
from impasto.config.dataset import DatasetConfig
from impasto.config.load import build_run_config, read_begun, with_dataset_file
from impasto.config.moved import as_seen_from
from impasto.config.output import PreviewConfig
from impasto.config.renamed import with_present_names
from impasto.config.run import RunConfig
from impasto.errors import RunError
from impasto.runs import RunDirectory, step_name
from impasto.sdscripts.flag import TRAIN_DB, Script
from impasto.sdscripts.origins import settings_of
from impasto.sdscripts.settings import build_settings, scripts_of
from impasto.sdscripts.translate import Tree, translate

if TYPE_CHECKING:  # imports torch
    from impasto.training.compute.precision import NativePrecision

_ABSENT = "(not given)"
"""A placeholder for a folder that is not given but required by the translation."""

_LENGTHS = {"max_steps", "max_epochs"}
_OPTIMIZERS = {"optimizer_type", "use_8bit_adam", "use_lion_optimizer"}
_DECIDING = ("mixed_precision", "max_grad_norm", "gradient_accumulation_steps")
"""Settings of `training` that affect how other flags are translated; flags of the same names."""

_OF_DATA = {"dataset_config", "train_data_dir", "in_json", "reg_data_dir"}
_IMAGES = ("image_dir", "metadata_file", "train_data_dir", "reg_data_dir")
"""Settings of `dataset` that select the images."""

_OF_FILE = (
    "--dataset_config with --resume: it applies together with the other given flags of the "
    "dataset. Give all those that the run was started with, or none and no --dataset_config."
)

_FORMERLY = {"v_pred_like_loss": "loss.noise_loss_like_v"}
"""Flags that some commands ignore in new runs -> the setting that earlier versions set by them."""

_OF_PREVIEWS = {
    "sample_prompts", "sample_every_n_steps", "sample_every_n_epochs", "sample_at_first",
}  # fmt: skip
_WHEN_DRAWN = ("previews.every_steps", "previews.every_epochs", "previews.at_first")
"""Settings that the flags of previews decide together: one interval replaces another."""


def find_run(resumed: str) -> RunDirectory:
    """Return the run in `--resume`, which is its folder or the folder of its newest state.

    Raises:
        RunError: It is not a run of Impasto, or not its newest state.
    """
    path = Path(resumed)
    if presence.is_file(path / "config.toml"):
        return RunDirectory(path)
    run = RunDirectory(path.parent.parent)
    if not presence.is_file(run.config_file):
        raise RunError(
            f"--resume {path} is not a run of Impasto. States saved by sd-scripts contain neither "
            f"the step nor the order of the data, and are pickles, which Impasto does not open; "
            f"start from the model that was saved with them. For a run of Impasto, give the folder "
            f"<name>-run."
        )
    newest = [step_name(step) for step in run.saved_steps()[-1:]]
    if newest != [path.name]:
        raise RunError(
            f"--resume {path} is not the newest state of {run.path}, which continues from "
            f"{''.join(newest) or 'its beginning'}. To go back to an older one, move the newer "
            f"folders out of {run.states} first."
        )
    return run


def resumed_config(
    script: Script,
    run: RunDirectory,
    flags: Mapping[str, Any],
    *,
    without_gpu: NativePrecision | None,
    has_tensorboard: bool,
) -> tuple[RunConfig, tuple[str, ...]]:
    """Return the settings of a run, changed by the flags, and notices about the flags.

    Settings without a given flag are unchanged. Whether the saved state fits the new settings is
    checked when it is loaded.

    Raises:
        ConfigError: As for `translate`, or the run's own settings are damaged.
        RunError: The run belongs to another command.
    """
    begun = read_begun(run.config_file)
    tree, _ = with_present_names(begun.values)
    # validates the tree
    asked_before = build_run_config(tree, source=str(run.config_file), begun=True)
    trained_by = scripts_of(tree["model"].get("family"))
    if trained_by and script not in trained_by:
        raise RunError(
            f"{run.path} trains {tree['model']['family']}, which {script} does not. Continue it "
            f"with {trained_by[0]} --resume, or with `impasto resume`."
        )
    given = {name: value for name, value in flags.items() if value is not None}
    full = {
        "pretrained_model_name_or_path": tree["model"]["path"],
        "output_dir": tree.get("saving", {}).get("model_dir", str(run.path.parent)),
        **_needed(script, tree, given),
        **_flags_of_previews(asked_before.previews, given),
        **given,
    }
    translation = translate(script, full, without_gpu, has_tensorboard=has_tensorboard)
    if given.keys() & _OF_DATA:
        tree["dataset"] = _dataset(given, translation.tree["dataset"], tree["dataset"])
    for flag in given.keys() - _OF_DATA:
        _take_over(translation.tree, tree, settings_of(script, flag))
    if given.keys() & _OF_PREVIEWS:
        _take_over(translation.tree, tree, _WHEN_DRAWN)
    if _at(translation.tree, "method.train_text_encoder") is False:  # by rates of 0
        _take_over(translation.tree, tree, ["method.train_text_encoder", "method.text_encoder_lrs"])
    asked = [key for key in ("max_steps", "max_epochs") if f"max_train_{key[4:]}" in given]
    for key in _LENGTHS - set(asked[-1:] or _LENGTHS):
        tree.get("training", {}).pop(key, None)
    if begun.folder != Path.cwd():  # paths in flags are relative to the current folder
        tree = as_seen_from(tree, Path.cwd())
    tree["dataset"] = with_dataset_file(
        tree["dataset"], formerly=_keeps_idle_buckets(asked_before.dataset)
    )
    config = build_settings(script, given, tree, begun=True)
    kept = _kept_as_before(script, given, tree)
    untold = {*(full.keys() - given.keys()), *kept}
    own = [*_without(translation.notices, untold), *kept.values()]
    if "dataset_config" in given and config.dataset != asked_before.dataset:
        own.append(_OF_FILE)
    return config, tuple(own)


def _without(notices: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return the notices without those about `flags`, and without that about the seed."""
    others = tuple(f"--{name}{end}" for name in flags for end in (":", "="))
    return [notice for notice in notices if not notice.startswith(("--seed was not", *others))]


def _kept_as_before(script: Script, given: Mapping[str, Any], tree: Tree) -> dict[str, str]:
    """Return flag -> notice for flags that new runs ignore, but that this run was started with."""
    passed_over = [flag for flag in _FORMERLY if flag in given and not settings_of(script, flag)]
    values = {flag: _at(tree, _FORMERLY[flag]) for flag in passed_over}
    return {
        flag: f"--{flag}: new runs ignore it, as sd-scripts does; this one was started with "
        f"{_FORMERLY[flag]} = {value:g}, and keeps it."
        for flag, value in values.items()
        if value is not None
    }


def _needed(script: Script, tree: Tree, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags needed for the translation that are not given, from the run's settings."""
    saving, found = tree.get("saving", {}), dict[str, Any]()
    for key in ("steps", "epochs"):
        if f"model_every_{key}" in saving:
            found[f"save_every_n_{key}"] = saving[f"model_every_{key}"]
    method = tree.get("method", {})
    if script == TRAIN_DB:
        until = method.get("text_encoder_until_step")
        found["stop_text_encoder_training"] = until if method.get("train_text_encoder") else -1
    elif method.get("train_text_encoder"):
        found["train_text_encoder"] = True
    training = tree.get("training", {})
    found |= {name: training[name] for name in _DECIDING if name in training}
    if "max_epochs" in training and "max_train_steps" not in given:
        found["max_train_epochs"] = training["max_epochs"]
    return found | _flags_of_rates(tree, given) | _flags_of_data(tree.get("dataset", {}), given)


def _flags_of_data(dataset: Tree, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that match a run's own images and resolution."""
    found: dict[str, Any] = {}
    if "dataset_config" in given:
        return found
    if "train_data_dir" not in given:
        found["train_data_dir"] = str(dataset.get("image_dir", _ABSENT))
    if dataset.get("enable_bucket", True):
        found["enable_bucket"] = True
    if "metadata_file" in dataset:
        found["in_json"] = str(dataset["metadata_file"])
    if "resolution" not in given:
        sides = dataset.get("resolution", 512)
        found["resolution"] = ",".join(map(str, sides)) if isinstance(sides, list) else str(sides)
    return found


def _dataset(given: Mapping[str, Any], flagged: Tree, own: Tree) -> Tree:
    """Return the run's dataset with its images replaced by those in the flags.

    Args:
        given: The given flags.
        flagged: The dataset that they are translated to.
        own: The dataset of the run.

    Raises:
        RunError: The flags name only some of its images, or give them in another way.
    """
    if "dataset_config" in given:
        return flagged
    named = {key: flagged[key] for key in _IMAGES if flagged.get(key, _ABSENT) != _ABSENT}
    subsets = [subset for entry in own.get("datasets", ()) for subset in entry["subsets"]]
    is_whole = (
        bool(subsets) == ("train_data_dir" in named)
        and any(subset.get("is_reg") for subset in subsets) == ("reg_data_dir" in named)
        and ("image_dir" in own) == ("image_dir" in named)
    )
    if not is_whole:
        flags = " and ".join(f"--{name}" for name in sorted(given.keys() & _OF_DATA))
        raise RunError(
            f"{flags} with --resume name other images than those of the run. Give all flags that "
            f"name its images, or none."
        )
    return {k: v for k, v in own.items() if k not in (*_IMAGES, "datasets")} | named


def _keeps_idle_buckets(dataset: DatasetConfig) -> bool:
    """Return whether a run has bucket settings that only earlier versions took from a file."""
    return any(
        (entry.buckets and entry.bucket_table == "metadata")
        or (entry.bucket_no_upscale and not entry.enable_bucket)
        for entry in dataset.entries
    )


def _flags_of_rates(tree: Tree, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of optimizer, rate and schedule on which flags of the rate depend."""
    optimizer, schedule = tree.get("optimizer", {}), tree.get("schedule", {})
    found = {"learning_rate": optimizer["lr"]} if "lr" in optimizer else {}
    if "kind" in optimizer and not given.keys() & _OPTIMIZERS:
        found["optimizer_type"] = optimizer["kind"]
    if "kind" in schedule:
        is_warmed = schedule["kind"] == "constant" and schedule.get("warmup_steps")
        found["lr_scheduler"] = "constant_with_warmup" if is_warmed else schedule["kind"]
    if "decay_steps" in schedule and "lr_scheduler" not in given:
        decay = schedule["decay_steps"]
        found["lr_decay_steps"] = 1 if decay == 1 else decay  # a flag may not be 1.0
    return found


def _flags_of_previews(previews: PreviewConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that match a run's previews; a given interval replaces the run's."""
    if not previews.prompts and previews.prompt_file is None:
        return {}
    found: dict[str, Any] = {"sample_prompts": str(previews.prompt_file or "")}
    if previews.at_first:
        found["sample_at_first"] = True
    if not given.keys() & {"sample_every_n_steps", "sample_every_n_epochs"}:
        unit = "steps" if previews.every_epochs is None else "epochs"
        found[f"sample_every_n_{unit}"] = previews.every_epochs or previews.every_steps
    return found


def _take_over(source: Tree, target: Tree, paths: Sequence[str]) -> None:
    """Copy the settings in `paths` from `source` to `target`; remove those that are unset."""
    values = {path: _at(source, path) for path in paths}
    if all(value is None for value in values.values()):
        return  # the translation has a notice about it
    for path, value in values.items():
        *sections, key = path.split(".")
        section_of = target
        for section in sections:
            section_of = section_of.setdefault(section, {})
        if value is None:
            section_of.pop(key, None)
        else:
            section_of[key] = value


def _at(tree: Tree, path: str) -> Any:
    value: Any = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
