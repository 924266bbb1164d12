"""The rows of `bench quality`: ways to train the demo's model, and models derived from the results.

Learning rates of full-size models are multiplied by one factor, the ratio of the demo's own rate to
that of the goal "a style": the tiny model takes larger steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from impasto.config.goal_settings import Material, settings_for
from impasto.config.goals import GOALS
from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.config.setting_files import read_toml
from impasto.demo.recipe import BASE_MODEL, PICTURES, SETTINGS, demo_config
from impasto.sdscripts.flag import FINE_TUNE
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.settings import build_settings
from impasto.sdscripts.translate import translate

STYLE = GOALS["style"]
SD_SCRIPTS_LR = 2e-6
"""sd-scripts' default of `--learning_rate` (library/train_util.py)."""

BASE, PRESET, UNMERGED = "base model", "our preset", "our preset, not merged"
REFERENCE = "sd-scripts' defaults"
"""The row that differences are taken from."""

MERGES = {ratio: f"merged with the base, {ratio}" for ratio in (0.25, 0.5, 0.75, 0.875)}
"""Fraction of the preset's trained weights in a mixture with the base model -> name of the row.

The preset exports such a mixture itself, through its `saving.merge_ratio`.
"""

Way = Literal["none", "plain", "sd-scripts", "preset"]


@dataclass(frozen=True)
class Derived:
    """A model that is derived from a finished run, without training.

    Attributes:
        name: The name of its row.
        ratio: Of a mixture of the base model (0) and the result (1).
        lengths: `sigma_rel` of the averages, of which the one with the lowest validation loss is
            used.
        is_best: Whether it is the run's best model by its own validation.
    """

    name: str
    ratio: float | None = None
    lengths: tuple[float, ...] = ()
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        name: The name in the table.
        way: `none` is the base model, `plain` a loop without options at the preset's rate.
        rate: A factor of the learning rate.
        changes: Further settings by their paths.
        prior_weight: The loss weight of images drawn by the base model; None without them.
        merges: Whether the preset's own `saving.merge_ratio` is applied; otherwise the trained
            weights are exported alone.
        derived: The models derived from its result.
    """

    name: str
    way: Way
    rate: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    prior_weight: float | None = None
    merges: bool = False
    derived: tuple[Derived, ...] = ()

    @property
    def chooses(self) -> bool:
        """Whether a model is selected by the run's own validation loss."""
        return any(derived.is_best or derived.lengths for derived in self.derived)


@dataclass(frozen=True)
class Setup:
    """The settings that all rows share.

    Attributes:
        steps: Optimizer updates.
        batch: Images per update.
        seeds: Each is the seed of a training and of its samples.
        per_prompt: Images drawn per held-out caption.
        drawing_steps: Steps of the sampler.
        prior: Images that the base model draws for the rows that use them.
    """

    steps: int = 80
    batch: int = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    per_prompt: int = 2
    drawing_steps: int = 12
    prior: int = 64


def scale() -> float:
    """Return the demo's rate divided by the rate of the goal "a style" for full-size models."""
    return demo_config(Path("unused")).optimizer.lr / STYLE.lr


def rows(setup: Setup) -> tuple[Row, ...]:
    """Return all rows: references, the preset, then the preset with one change each, not merged."""
    lr = STYLE.lr * scale()
    until = max(1, int(0.3 * setup.steps))
    return (
        Row(BASE, "none"),
        Row("plain loop", "plain"),
        Row(REFERENCE, "sd-scripts", derived=(
            Derived("sd-scripts' defaults, merged with the base, 0.9", ratio=0.9),
        )),
        Row("sd-scripts at the preset's rate", "sd-scripts", rate=STYLE.lr / SD_SCRIPTS_LR),
        Row(PRESET, "preset", merges=True),
        Row(UNMERGED, "preset", derived=(
            Derived("its best model", is_best=True),
            Derived("post-hoc EMA", lengths=(0.05, 0.1, 0.15, 0.25)),
            *(Derived(name, ratio=ratio) for ratio, name in MERGES.items()),
        )),
        Row("rate * 2", "preset", rate=2.0, derived=tuple(
            Derived(f"rate * 2, merged with the base, {ratio}", ratio=ratio)
            for ratio in (0.5, 0.625, 0.75)
        )),
        Row("rate * 0.8", "preset", rate=0.8),
        Row("rate * 0.4", "preset", rate=0.4),
        Row("EMA 0.95", "preset", changes={"training.ema_decay": 0.95}),
        Row("min-SNR 5", "preset", changes={"loss.min_snr_gamma": 5.0}),
        Row("soft min-SNR 4", "preset", changes={"loss.soft_min_snr_gamma": 4.0}),
        Row("learned uncertainty", "preset", changes={"loss.uncertainty": True}),
        Row("immiscible noise", "preset", changes={"noise.immiscible": True}),
        Row("noise offset 0", "preset", changes={"noise.offset": 0.0}),
        Row("noise offset 0.1", "preset", changes={"noise.offset": 0.1}),
        Row("L2-SP", "preset", changes={"optimizer.start_decay": round(1 / (lr * setup.steps), 2)}),
        Row("attention only", "preset", changes={"method.train_only": ["*.attn1.*", "*.attn2.*"]}),
        Row("text encoder, first 30 %", "preset", changes={
            "method.train_text_encoder": True, "method.text_encoder_lr": lr / 2,
            "method.text_encoder_until_step": until,
        }),
        Row("prior images", "preset", prior_weight=1.0),
        Row("Diff-Tuning", "preset", changes={"loss.diff_tuning": 1.0}, prior_weight=0.1),
    )  # fmt: skip


def config_of(row: Row, setup: Setup, seed: int, out: Path, scratch: Path) -> RunConfig:
    """Return the settings that a row is trained with.

    Args:
        row: The row; not the base model.
        setup: The settings that all rows share.
        seed: The seed of the training.
        out: The run directory.
        scratch: The folder of derived data and of the base model's images.
    """
    tree = _sd_scripts(row, setup, seed, out) if row.way == "sd-scripts" else _ours(row, setup, out)
    tree["seed"] = seed
    tree["dataset"]["cache_dir"] = str(scratch / "derived")
    put(tree, "training.fit_check", value=False)
    put(tree, "saving.state_every_steps", value=0)
    put(tree, "saving.keep_final_state", value=False)
    for path, value in row.changes.items():
        put(tree, path, value=value)
    if row.prior_weight is not None:
        _add_prior(tree, row.prior_weight, prior_folder(scratch))
    if row.way == "sd-scripts":
        return build_settings(FINE_TUNE, {}, tree)
    return build_run_config(tree, source=row.name)


def prior_folder(scratch: Path) -> Path:
    """Return the folder of the images that the base model draws."""
    return scratch / "prior"


def put(tree: dict[str, Any], path: str, *, value: Any) -> None:
    """Set a value in a nested dict by its dotted path."""
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _ours(row: Row, setup: Setup, out: Path) -> dict[str, Any]:
    """Return the settings of the plain loop or of the goal "a style", for the demo's data."""
    shapes = read_toml(SETTINGS)["dataset"]
    tree: dict[str, Any] = {"model": {"path": str(BASE_MODEL)}, "dataset": {}, "training": {}}
    if row.way == "preset":
        tree = copy.deepcopy(preset())
        tree["training"].pop("memory")
        _validate(tree, row, setup)
        if not row.merges:
            del tree["saving"]["merge_ratio"]
    tree["output_dir"] = str(out)
    tree["dataset"] |= {**shapes, "image_dir": str(PICTURES)}
    tree["optimizer"] = {"lr": STYLE.lr * scale() * row.rate}
    tree["training"] |= {
        "max_steps": setup.steps,
        "batch_size": setup.batch,
        "gradient_accumulation_steps": 1,
        "mixed_precision": "no",
    }
    return tree


def preset() -> dict[str, Any]:
    """Return the settings of `impasto new` for a style from 100 images, without previews."""
    material = Material(
        model=str(BASE_MODEL), family="SD 1.x", resolution=128, generation="SD 1.x",
        predicts_noise=True, takes_clip_skip=True, image_dir=str(PICTURES), images=100,
        captions=(), output_dir="unused",
    )  # fmt: skip
    tree, _ = settings_for(STYLE, material)
    return tree


def _validate(tree: dict[str, Any], row: Row, setup: Setup) -> None:
    """Validate ten times, like the preset, if a model is selected by it; else hardly at all."""
    if row.chooses:
        tree["validation"]["every_steps"] = max(1, setup.steps // 10)
        put(tree, "training.posthoc_ema", value=True)
        return
    tree["validation"] |= {
        "every_steps": setup.steps, "timesteps": 1, "standard_error": 0.0, "training_images": 0,
    }  # fmt: skip
    put(tree, "saving.best_model", value=False)


def _sd_scripts(row: Row, setup: Setup, seed: int, out: Path) -> dict[str, Any]:
    """Return the settings of `fine_tune.py` with required flags, and a rate for a tiny model."""
    shapes = read_toml(SETTINGS)["dataset"]
    flags = parse_flags(FINE_TUNE, [
        f"--pretrained_model_name_or_path={BASE_MODEL}", f"--output_dir={out.parent}",
        f"--output_name={out.name}", "--save_model_as=safetensors", f"--seed={seed}",
        f"--train_data_dir={PICTURES}", "--caption_extension=.txt", "--enable_bucket",
        f"--resolution={shapes['resolution']}", f"--min_bucket_reso={shapes['min_bucket_reso']}",
        f"--max_bucket_reso={shapes['max_bucket_reso']}",
        f"--bucket_reso_steps={shapes['bucket_reso_steps']}",
        f"--train_batch_size={setup.batch}", f"--max_train_steps={setup.steps}",
        f"--learning_rate={SD_SCRIPTS_LR * scale() * row.rate}",
    ])  # fmt: skip
    tree = translate(FINE_TUNE, flags, has_tensorboard=False).tree
    del tree["saving"]["model_dir"]  # the model is saved in the run directory
    return {**tree, "output_dir": str(out)}


def _add_prior(tree: dict[str, Any], weight: float, folder: Path) -> None:
    """Add a second subset, of regularisation images, to the dataset."""
    own = {"image_dir": tree["dataset"].pop("image_dir")}
    subsets = [own, {"image_dir": str(folder), "is_reg": True}]
    tree["dataset"] |= {"prior_loss_weight": weight, "datasets": [{"subsets": subsets}]}
