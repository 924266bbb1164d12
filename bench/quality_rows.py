"""What `bench quality` compares: ways to train the demo's model, and what is made of the result.

Rates of full-size models are multiplied by one number, that by which the demo's own rate is above
the one of the goal "a style": the tiny model takes larger steps.
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
from impasto.config.validation import read_toml
from impasto.demo.recipe import BASE_MODEL, PICTURES, SETTINGS, demo_config
from impasto.sdscripts.flag import FINE_TUNE
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.settings import build_settings
from impasto.sdscripts.translate import translate

STYLE = GOALS["style"]
SD_SCRIPTS_LR = 2e-6
"""`--learning_rate` of sd-scripts where it is not given (library/train_util.py)."""

BASE, PRESET, UNMERGED = "base model", "our preset", "our preset, not merged"
REFERENCE = "sd-scripts' defaults"
"""What differences are taken from."""

MERGES = {ratio: f"merged with the base, {ratio}" for ratio in (0.25, 0.5, 0.75, 0.875)}
"""Ratios of what the preset trains in a mixture with the base model -> what the mixture is called.

The preset exports such a mixture itself, by its `saving.merge_ratio`."""

Way = Literal["none", "plain", "sd-scripts", "preset"]


@dataclass(frozen=True)
class Derived:
    """A model that is made of a finished run, without training.

    Attributes:
        name: What it is called.
        ratio: Of a mixture of the base model (0) and the result (1).
        lengths: `sigma_rel` of averages of which the one with the least validation loss is taken.
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
        name: What it is called.
        way: `none` is the base model, `plain` a loop without options at the preset's rate.
        rate: The learning rate is multiplied by this.
        changes: Settings by their paths, beyond those of the way.
        prior_weight: What images drawn by the base model count in the loss; None without them.
        merges: Whether the preset's own `saving.merge_ratio` is kept; else what was trained is
            exported alone.
        derived: What is made of its result besides.
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
        """Whether something is chosen by the run's own validation loss."""
        return any(derived.is_best or derived.lengths for derived in self.derived)


@dataclass(frozen=True)
class Setup:
    """What is the same for all rows.

    Attributes:
        steps: Updates.
        batch: Images of an update.
        seeds: Each is the seed of a training and of what is drawn.
        per_prompt: Images that are drawn of each held-out caption.
        drawing_steps: Steps of the sampler.
        prior: Images that the base model draws for the rows that have them.
    """

    steps: int = 80
    batch: int = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    per_prompt: int = 2
    drawing_steps: int = 12
    prior: int = 64


def scale() -> float:
    """By how much the demo's rate is above that of the goal "a style" for full-size models."""
    return demo_config(Path("unused")).optimizer.lr / STYLE.lr


def rows(setup: Setup) -> tuple[Row, ...]:
    """All rows: references, the preset, then each option as a change of the preset, not merged."""
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
    """The settings that a row is trained with.

    Args:
        row: The row; not the base model.
        setup: What all rows have.
        seed: Of the training.
        out: The run directory.
        scratch: Where derived data and the images of the base model are.
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
    """The images that the base model draws."""
    return scratch / "prior"


def put(tree: dict[str, Any], path: str, *, value: Any) -> None:
    """Set a value of a tree by its path."""
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _ours(row: Row, setup: Setup, out: Path) -> dict[str, Any]:
    """The plain loop, or the goal "a style" for the demo's model and images."""
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
    """The settings that `impasto new` makes for a style, of 100 images without previews."""
    material = Material(
        model=str(BASE_MODEL), family="SD 1.x", resolution=128, generation="SD 1.x",
        predicts_noise=True, takes_clip_skip=True, image_dir=str(PICTURES), images=100,
        captions=(), output_dir="unused",
    )  # fmt: skip
    tree, _ = settings_for(STYLE, material)
    return tree


def _validate(tree: dict[str, Any], row: Row, setup: Setup) -> None:
    """Ten validations where something is chosen by them, as in the preset; else hardly any."""
    if row.chooses:
        tree["validation"]["every_steps"] = max(1, setup.steps // 10)
        put(tree, "training.posthoc_ema", value=True)
        return
    tree["validation"] |= {
        "every_steps": setup.steps, "timesteps": 1, "standard_error": 0.0, "training_images": 0,
    }  # fmt: skip
    put(tree, "saving.best_model", value=False)


def _sd_scripts(row: Row, setup: Setup, seed: int, out: Path) -> dict[str, Any]:
    """What `fine_tune.py` does with the flags that have to be given, and a rate of the size."""
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
    del tree["saving"]["model_dir"]  # the model goes into the run's own folder, and with it
    return {**tree, "output_dir": str(out)}


def _add_prior(tree: dict[str, Any], weight: float, folder: Path) -> None:
    """Give the dataset a second subset, of regularisation images."""
    own = {"image_dir": tree["dataset"].pop("image_dir")}
    subsets = [own, {"image_dir": str(folder), "is_reg": True}]
    tree["dataset"] |= {"prior_loss_weight": weight, "datasets": [{"subsets": subsets}]}
