"""Translates the flags of sd-scripts' training commands to the settings of a run."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impasto.errors import ConfigError
from impasto.invocation import install_extra
from impasto.sampler_table import OTHER_NAMES
from impasto.sdscripts import dreambooth_rules, sdxl_rules
from impasto.sdscripts.dataset_flags import set_dataset
from impasto.sdscripts.flag import FINE_TUNE, SDXL_TRAIN, TRAIN_DB, Script
from impasto.sdscripts.flags import flags_of
from impasto.sdscripts.optimizer_flags import set_optimizer
from impasto.sdscripts.saving_flags import set_saving
from impasto.sdscripts.schedule_flags import set_schedule

if TYPE_CHECKING:  # imports torch, which the translation does not need
    from impasto.training.compute.precision import NativePrecision

Tree = dict[str, Any]

_PROJECTS: Mapping[Script, str] = {TRAIN_DB: "dreambooth"}
_OF_FOLDERS = (
    dreambooth_rules.set_dreambooth_folders,
    dreambooth_rules.tell_of_tag_files,
    dreambooth_rules.set_masks,
)
_RULES_OF: Mapping[Script, Sequence[Callable[[Mapping[str, Any], Tree], list[str]]]] = {
    FINE_TUNE: (),
    TRAIN_DB: (*_OF_FOLDERS, dreambooth_rules.set_text_encoder_length),
    SDXL_TRAIN: (*_OF_FOLDERS, *sdxl_rules.RULES),
}


@dataclass(frozen=True)
class Translation:
    """A run's settings, and notices about flags without effect or with a different effect."""

    tree: Tree
    notices: tuple[str, ...]


def translate(
    script: Script,
    flags: Mapping[str, Any],
    without_gpu: NativePrecision | None = None,
    *,
    has_tensorboard: bool = True,
) -> Translation:
    """Translate flags to the settings with the same effect.

    Args:
        script: The command that has the flags.
        flags: The flags, from `parse_flags`.
        without_gpu: The fastest precision of the CPU if there is no GPU; None with a GPU.
        has_tensorboard: Whether TensorBoard is installed, for `--logging_dir`.

    Raises:
        ConfigError: A required flag is missing, or flags contradict each other.
    """
    for name in ("pretrained_model_name_or_path", "output_dir"):
        if not flags.get(name):
            raise ConfigError(f"--{name} is required.")
    tree: Tree = {"model": {"family": _family(script, flags)}}
    known = flags_of(script)
    for name, flag in known.items():
        value = flags.get(name, flag.default)
        if flag.to and value is not None:
            _put(tree, flag.to, value)
    notices = [f"--{n}: {known[n].notice}." for n in flags if known[n].notice]
    for rule in (
        _model,
        set_dataset,
        _length,
        set_optimizer,
        set_schedule,
        set_saving,
        _previews,
        _timesteps,
        _weights_by_noise,
        _compiling,
        *_RULES_OF[script],
        _text_encoder,
    ):
        notices += rule(flags, tree)
    project = _PROJECTS.get(script, "finetuning")
    notices += _logging(flags, tree, project, has_tensorboard=has_tensorboard)
    notices += _precision(flags, tree, without_gpu)
    return Translation({k: v for k, v in tree.items() if v != {}}, tuple(notices))


def _put(tree: Tree, path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = value


def _family(script: Script, flags: Mapping[str, Any]) -> str:
    of_velocity = flags.get("v_parameterization", False)
    if script == SDXL_TRAIN:
        return "sdxl-v" if of_velocity else "sdxl"
    if flags.get("v2"):
        return "sd2-v" if of_velocity else "sd2-base"
    return "sd1"


def _model(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    model = tree["model"]
    if model["family"] == "sd1":
        of_velocity = flags.get("v_parameterization", False)
        model["prediction_type"] = "v_prediction" if of_velocity else "epsilon"
    model["max_tokens"] = flags.get("max_token_length", 75)
    model |= {"token_join": "kohya", "token_split": "plain"}
    if flags.get("weighted_captions"):
        model["caption_emphasis"] = "no_norm"
    return []


def _text_encoder(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Remove the learning rate of a text encoder that is not trained; kohya_ss always writes it."""
    method = tree.get("method", {})
    if flags.get("learning_rate_te") is None or method.get("train_text_encoder"):
        return []
    del method["text_encoder_lr"]
    return ["--learning_rate_te: it has no effect, as the text encoder is not trained."]


def _weights_by_noise(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Compute loss weights by noise level from the schedule before rescaling, as sd-scripts does.

    There `prepare_scheduler_for_custom_training` computes the SNR of all timesteps first
    (kohya-ss/sd-scripts, `library/custom_train_functions.py`; the training scripts call it).
    """
    del flags
    loss = tree.get("loss", {})
    if tree.get("noise", {}).get("zero_terminal_snr") and any(map(loss.get, _BY_NOISE)):
        loss["snr_schedule"] = "original"
    return []


_BY_NOISE = ("min_snr_gamma", "v_loss_as_noise_loss", "noise_loss_like_v", "debiased")


def _length(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    training = tree["training"]
    if "max_train_epochs" in flags:
        training.pop("max_steps")
    seed = flags.get("seed")
    if seed is None:
        seed = secrets.randbelow(2**31)
        tree["seed"] = seed
        return [f"--seed was not given: this run uses {seed}."]
    tree["seed"] = seed
    return []


def _previews(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    previews = tree.setdefault("previews", {})
    previews["at_first"] = bool(flags.get("sample_at_first"))
    sampler = flags.get("sample_sampler", "ddim")
    previews["sampler"] = OTHER_NAMES.get(sampler, sampler)
    previews |= {"steps": 30, "guidance_scale": 7.5}
    intervals = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
    asked = [name for name in intervals if flags.get(name, 0) > 0]
    if asked and "sample_prompts" not in flags:
        raise ConfigError(f"--{asked[0]} needs --sample_prompts.")
    notices = []
    for name in intervals[:-1]:
        if flags.get(name, 1) <= 0:
            del previews[f"every_{name.rpartition('_')[2]}"]
            notices.append(f"--{name}: {flags[name]} means never.")
    if "sample_prompts" in flags and not previews.keys() & {"every_steps", "every_epochs"}:
        previews["every_steps"] = 0
    if asked:
        return notices
    previews.pop("sampler")
    if "sample_sampler" in flags:
        notices.append("--sample_sampler: it has no effect, as no previews are drawn.")
    if previews.pop("prompt_file", None) is not None:
        notices.append(
            f"--sample_prompts: it has no effect without --{', --'.join(intervals[:-1])} or "
            f"--{intervals[-1]}."
        )
    return notices


def _logging(
    flags: Mapping[str, Any], tree: Tree, project: str, *, has_tensorboard: bool
) -> list[str]:
    """Set the trackers as in sd-scripts; skip TensorBoard, with a notice, if it is not installed.

    `--logging_dir` without `--log_with` means TensorBoard.
    """
    kinds = {"tensorboard": ["tensorboard"], "wandb": ["wandb"], "all": ["tensorboard", "wandb"]}
    asked = flags.get("log_with") or ("tensorboard" if flags.get("logging_dir") else None)
    trackers = [] if asked is None else kinds[asked]
    told = (
        []
        if "wandb" in trackers
        else [
            f"--{name}: it is for Weights & Biases, which needs --log_with=wandb."
            for name in ("log_tracker_name", "wandb_run_name")
            if flags.get(name)
        ]
    )
    if not trackers:
        return told
    if "tensorboard" in trackers and not has_tensorboard:
        trackers.remove("tensorboard")
        if trackers:
            tree["logging"] = {"trackers": trackers, **_of_wandb(flags, trackers, project)}
        name = "log_with" if flags.get("log_with") else "logging_dir"
        return [
            *told,
            f"--{name}: TensorBoard is not installed, so nothing is written for it "
            f"({install_extra('trackers')}); metrics go to metrics.jsonl and "
            f"report.html in the run directory.",
        ]
    tree["logging"] = {"trackers": trackers, **_of_wandb(flags, trackers, project)}
    if not flags.get("logging_dir"):
        return told
    names = {"tensorboard": "TensorBoard's", "wandb": "Weights & Biases'"}
    places = " and ".join(f"{names[kind]} files are in the folder {kind}" for kind in trackers)
    return [*told, f"--logging_dir: {places} of the run; {flags['logging_dir']} is not used."]


def _of_wandb(flags: Mapping[str, Any], trackers: Sequence[str], project: str) -> Tree:
    """Return the project and run name for Weights & Biases; `project` is the default project."""
    if "wandb" not in trackers:
        return {}
    name = flags.get("wandb_run_name")
    found = {"wandb_project": flags.get("log_tracker_name") or project}
    return found if not name else {**found, "wandb_name": name}


def _compiling(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Compile the whole U-Net with `--torch_compile`, as accelerate does in sd-scripts."""
    if flags.get("torch_compile"):
        tree["training"]["compile"] = "full"
    return []


def _timesteps(_: Mapping[str, Any], tree: Tree) -> list[str]:
    """Use only max_timestep if the range of timesteps is empty, as sd-scripts does."""
    timesteps = tree.get("timesteps", {})
    if "first" in timesteps and "last" in timesteps and timesteps["first"] >= timesteps["last"]:
        last = min(timesteps["last"], 999)
        tree["timesteps"] = {"first": last, "last": last + 1}
    return []


def _precision(
    flags: Mapping[str, Any], tree: Tree, without_gpu: NativePrecision | None
) -> list[str]:
    asked, notices = flags.get("mixed_precision", "no"), []
    full = next((name for name in ("fp16", "bf16") if flags.get(f"full_{name}")), None)
    if full is not None and full != asked:
        raise ConfigError(f"--full_{full} needs --mixed_precision={full}.")
    if asked != "no" and without_gpu is not None and without_gpu.kind != asked:
        notices.append(
            f"--mixed_precision={asked}: computing in {without_gpu.description}, as there is no "
            f"GPU and {without_gpu.reason}."
        )
        asked = without_gpu.kind
    tree["training"]["mixed_precision"] = asked
    if full is not None and asked == "no":
        notices.append(f"--full_{full}: weights are kept in float32, like all computation.")
    elif full is not None:
        tree["training"]["weight_dtype"] = asked
        notices.append(
            f"--full_{full}: weights are kept in {asked} with stochastic rounding, so that small "
            f"changes are not lost."
        )
    return notices
