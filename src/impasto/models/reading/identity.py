"""Identifies the family of a model and the prediction of its U-Net, and reports the evidence.

The tensors show the generation: they have the marks of some rows of the table and not of the
others. They do not show the prediction: the first witness that knows it decides, in the order of
`WITNESSES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto.checkpoints.kinds import INPUT_CHANNELS
from impasto.checkpoints.ldm import VELOCITY_MARK
from impasto.checkpoints.modelspec import ARCHITECTURE, read_prediction_type
from impasto.checkpoints.tensors import Tensors
from impasto.diffusion.prediction import EPSILON, PREDICTIONS, VELOCITY, Prediction
from impasto.errors import ModelError, OtherFamilyError
from impasto.models import families
from impasto.models.family import CONDITIONED_BY, ENTRIES, Family, Marks
from impasto.parsing import printable

PARAMETERIZATIONS: dict[str, Prediction] = {"eps": EPSILON, "v": VELOCITY}
GLOBAL_STEPS: dict[int, Prediction] = {875000: EPSILON, 110000: VELOCITY}
"""`global_step` of Stability's SD 2 base and 2.1 768-v files; diffusers 0.42
`loaders/single_file_utils.py` reads them the same way."""

TELLING_TENSOR = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
TELLING_DEVIATION = 0.09
"""Velocity models have a larger spread in that tensor; ComfyUI `comfy/supported_models.py`."""
GUIDANCE_INPUTS = ("time_embedding.cond_proj.weight", "time_embed.cond_proj.weight")
"""The layer of a U-Net with `time_cond_proj_dim` (arXiv:2310.04378): in diffusers, in LDM."""
DOUBTFUL = 0.1  # the spread decides nothing within this fraction of the threshold


@dataclass(frozen=True)
class Identity:
    """A model's family and prediction, with the evidence.

    Attributes:
        family: Row of the family table.
        prediction: What its U-Net predicts.
        evidence: Evidence for both, in words.
        contradicted_by: Statement of the model's files that contradicts the user's setting, which
            is followed; empty if there is none.
    """

    family: Family
    prediction: Prediction
    evidence: str
    contradicted_by: str = ""


@dataclass(frozen=True)
class Clues:
    """The facts from which a model is identified.

    Attributes:
        source: Path or id of the model, for messages.
        unet: Tensors of the U-Net by diffusers' names.
        encoders: Name and dialect of each text encoder, as in `Marks`.
        scheduler_config: Scheduler configuration of a Diffusers folder; None for a single file.
        metadata: Metadata texts of the file.
        counters: Numbers stored in the file.
        sidecar: Path and parsed content of the `.yaml` beside a single file.
        family_key: The user's setting `model.family`.
        prediction_name: The user's setting `model.prediction_type`.
        marks: Empty tensors in the file that mark its type, such as `v_pred`.
    """

    source: str
    unet: Tensors
    encoders: tuple[tuple[str, str], ...]
    scheduler_config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    sidecar: tuple[Path, Mapping[str, Any]] | None = None
    family_key: str | None = None
    prediction_name: str | None = None
    marks: frozenset[str] = frozenset()


def identify(clues: Clues) -> Identity:
    """Return the family and the prediction of a model.

    Raises:
        ModelError: It is an inpainting or other special model, belongs to no family in the table,
            or its prediction cannot be determined.
        OtherFamilyError: The user's setting contradicts the tensors.
    """
    _require_plain(clues)
    generation, seen = _generation(clues)
    if clues.family_key is not None and clues.family_key not in {row.key for row in generation}:
        keys = tuple(row.key for row in generation)
        raise OtherFamilyError(
            f"{clues.source}: model.family says {clues.family_key}, but the tensors are those of "
            f"{' or '.join(keys)} ({seen}). Remove the setting.",
            clues.source,
            keys,
        )
    _require_consistent(clues, generation)
    for witness in WITNESSES:
        testimony = witness(clues, generation)
        if testimony is not None:
            prediction, told_by = testimony
            against = _against(clues, generation, prediction)
            if against:
                told_by += f", against the model's own statement ({against})"
            rows = [row for row in generation if row.key == clues.family_key] or [
                row for row in generation if row.prediction is prediction
            ]
            return Identity(
                (rows or list(generation))[0], prediction, f"{seen}; {told_by}", against
            )
    choices = " or ".join(f"{row.prediction.name} (as {row.name} does)" for row in generation)
    raise ModelError(
        f"{clues.source} is an {generation[0].generation} model, and nothing tells whether it "
        f"predicts {choices}. Set model.prediction_type to one of the two (--prediction-type on "
        f"a command line), or put its .yaml file beside it."
    )


def _require_consistent(clues: Clues, generation: tuple[Family, ...]) -> None:
    """Check that a file's metadata and its mark agree, unless the user has set the prediction.

    Raises:
        ModelError: They disagree: one of them is from another model merged into it.
    """
    if clues.prediction_name is not None or clues.family_key is not None:
        return
    said, marked = _the_metadata(clues, generation), _the_mark(clues, generation)
    if said is not None and marked is not None and said[0] is not marked[0]:
        raise ModelError(
            f"{clues.source} contradicts itself: {said[1]} says {said[0].name}, but it has "
            f"{marked[1]} ({marked[0].name}). Generate images with each, and set "
            f"model.prediction_type (--prediction-type on a command line) to the one whose images "
            f"look right."
        )


def _against(clues: Clues, generation: tuple[Family, ...], prediction: Prediction) -> str:
    """Return the statement of the files that contradicts the user's setting; empty if none does."""
    if clues.prediction_name is None and clues.family_key is None:
        return ""
    for witness in (_the_scheduler, _the_metadata, _the_mark, _the_sidecar):
        recorded: Testimony = None
        with contextlib.suppress(ModelError):  # an unreadable statement is no contradiction
            recorded = witness(clues, generation)
        if recorded is not None and recorded[0] is not prediction:
            return f"{recorded[1]}: {recorded[0].name}"
    return ""


def _require_plain(clues: Clues) -> None:
    if "conv_in.weight" not in clues.unet:
        raise ModelError(f"{clues.source} has no U-Net that Impasto knows: conv_in is missing.")
    channels = clues.unet["conv_in.weight"].shape[1]
    if channels != 4:
        sort = INPUT_CHANNELS.get(channels, "of an unknown kind")
        raise ModelError(
            f"{clues.source} is not a plain model but {sort}: its U-Net takes {channels} channels, "
            f"and only models that take 4 can be trained. Use the plain version of this model."
        )
    if any(name in clues.unet for name in GUIDANCE_INPUTS):
        raise ModelError(
            f"{clues.source} is not a plain model but a latent consistency model (LCM): its U-Net "
            f"takes the guidance scale as an input, and is distilled to draw in a few steps, which "
            f"training as a plain model would undo. Use the model that it was distilled from; an "
            f"LCM LoRA works with models trained from that one."
        )


def _generation(clues: Clues) -> tuple[tuple[Family, ...], str]:
    """Return the families whose marks the tensors have, and a description of the marks.

    Raises:
        ModelError: There is none; the message lists the marks found and those of each family.
    """
    found = _marks(clues)
    width = clues.unet["conv_in.weight"].shape[0]
    differences = {
        row.key: found.against(row.marks, full_size=width == row.unet.channels[0])
        for row in families.FAMILIES
    }
    rows = tuple(row for row in families.FAMILIES if not differences[row.key])
    if rows:
        return rows, str(found)
    if found.depths in families.RELATIVES:
        raise ModelError(
            f"{clues.source} is {families.RELATIVES[found.depths]}, which was made from SDXL with "
            f"fewer transformer blocks, and not SDXL: {found}. Use SDXL or a model of its size."
        )
    otherwise = {row.generation: ", ".join(differences[row.key]) for row in families.FAMILIES}
    raise ModelError(
        f"{clues.source} is not a model of a family that Impasto knows: {found}. The known "
        f"ones have instead: {'; '.join(f'{name}: {text}' for name, text in otherwise.items())}."
    )


def _marks(clues: Clues) -> Marks:
    """Return the marks found in the tensors.

    Raises:
        ModelError: The U-Net has no cross-attention.
    """
    entry = next((n for n in clues.unet if n.endswith(".attentions.0.proj_in.weight")), None)
    key = next((n for n in clues.unet if n.endswith("attn2.to_k.weight")), None)
    if entry is None or key is None:
        raise ModelError(
            f"{clues.source} has a U-Net without cross-attention: not {families.known_as()}."
        )
    modules = {name.partition(".")[0] for name in clues.unet}
    return Marks(
        clues.encoders,
        ENTRIES[len(clues.unet[entry].shape) == 2],
        tuple(module for module in CONDITIONED_BY if module in modules),
        clues.unet[key].shape[1],
        _depths(clues.unet),
    )


def _depths(unet: Tensors) -> tuple[int, ...]:
    """Return the transformer blocks of the first attention of each level on the way down."""
    found: dict[int, set[str]] = {}
    for name in unet:
        names = name.split(".")
        is_level = len(names) > 1 and names[0] == "down_blocks" and len(names[1]) < 4
        if is_level and names[1].isdecimal():
            blocks = found.setdefault(int(names[1]), set())
            if names[2:5] == ["attentions", "0", "transformer_blocks"]:
                blocks.update(names[5:6])
    return tuple(len(found[level]) for level in sorted(found))


Testimony = tuple[Prediction, str] | None


def _the_user(clues: Clues, generation: tuple[Family, ...]) -> Testimony:
    if clues.prediction_name is not None:
        return PREDICTIONS[clues.prediction_name], f"model.prediction_type {clues.prediction_name}"
    row = next((row for row in generation if row.key == clues.family_key), None)
    return None if row is None else (row.prediction, f"model.family {row.key}")


def _the_scheduler(clues: Clues, _: tuple[Family, ...]) -> Testimony:
    if clues.scheduler_config is None:
        return None
    stated = clues.scheduler_config.get("prediction_type")
    if stated is None:
        return EPSILON, "scheduler config without prediction_type, which means epsilon"
    if not isinstance(stated, str) or stated not in PREDICTIONS:
        raise ModelError(
            f"{clues.source}: the scheduler's prediction_type is {stated!r}; expected "
            f"{' or '.join(PREDICTIONS)}."
        )
    return PREDICTIONS[stated], f"scheduler prediction_type {stated}"


def _the_metadata(clues: Clues, _: tuple[Family, ...]) -> Testimony:
    stated = read_prediction_type(clues.metadata)
    if stated is None:
        return None
    key, name = stated
    if name is None:
        raise ModelError(
            f"{clues.source}: {key} in the file is {printable(clues.metadata[key])!r}, which "
            f"Impasto does not know; expected epsilon or v. Set model.prediction_type "
            f"(--prediction-type on a command line)."
        )
    return PREDICTIONS[name], f"{key} in the file"


def _the_architecture(clues: Clues, generation: tuple[Family, ...]) -> Testimony:
    """Use the architecture in the metadata if it distinguishes rows of a generation, as in SD 2."""
    said = clues.metadata.get(ARCHITECTURE)
    rows = [row for row in generation if row.architecture == said]
    if len(rows) != 1 or len(generation) == 1:
        return None
    return rows[0].prediction, f"{ARCHITECTURE} in the file"


def _the_mark(clues: Clues, _: tuple[Family, ...]) -> Testimony:
    if VELOCITY_MARK not in clues.marks:
        return None
    return VELOCITY, f"a tensor {VELOCITY_MARK} in the file, which marks such models"


def _the_sidecar(clues: Clues, _: tuple[Family, ...]) -> Testimony:
    if clues.sidecar is None:
        return None
    path, content = clues.sidecar
    try:
        stated = content["model"]["params"].get("parameterization", "eps")
    except (KeyError, TypeError, AttributeError):
        return None
    found = PARAMETERIZATIONS.get(stated) if isinstance(stated, str) else None
    return None if found is None else (found, f"{path.name} says parameterization {stated}")


def _the_only_row(_: Clues, generation: tuple[Family, ...]) -> Testimony:
    if len(generation) != 1:
        return None
    row = generation[0]
    reason = f"{row.name} predicts {row.prediction.name} unless stated otherwise"
    return row.prediction, reason


def _no_mark(clues: Clues, generation: tuple[Family, ...]) -> Testimony:
    """Return the unmarked row's prediction for a single file without the mark of the other row."""
    marked = [row for row in generation if row.mark is not None]
    plain = [row for row in generation if row.mark is None]
    if clues.scheduler_config is not None or len(plain) != 1 or not marked:
        return None
    return plain[0].prediction, f"no tensor {marked[0].mark} in the file"


def _the_step_counter(clues: Clues, _: tuple[Family, ...]) -> Testimony:
    step = clues.counters.get("global_step")
    found = GLOBAL_STEPS.get(step) if step is not None else None
    return None if found is None else (found, f"global_step {step}, that of Stability's own file")


def _the_spread(clues: Clues, _: tuple[Family, ...]) -> Testimony:
    """Apply ComfyUI's heuristic; None if the spread is near the threshold or invalid."""
    tensor = clues.unet.get(TELLING_TENSOR)
    if tensor is None:
        return None
    deviation = float(tensor.read().float().std(correction=0))
    if not deviation > 0 or abs(deviation / TELLING_DEVIATION - 1) < DOUBTFUL:
        return None
    found: Prediction = VELOCITY if deviation > TELLING_DEVIATION else EPSILON
    sign = ">" if deviation > TELLING_DEVIATION else "<"
    return found, f"guessed: spread of {TELLING_TENSOR} {deviation:.3f} {sign} 0.09"


WITNESSES: tuple[Callable[[Clues, tuple[Family, ...]], Testimony], ...] = (
    _the_user,
    _the_scheduler,
    _the_metadata,
    _the_mark,
    _the_architecture,
    _the_sidecar,
    _the_only_row,
    _no_mark,
    _the_step_counter,
    _the_spread,
)
