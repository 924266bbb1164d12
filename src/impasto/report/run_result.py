"""The result of a run as text for the head of its report: base model, verdict, next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.hub_ids import is_hub_id
from impasto.invocation import quoted
from impasto.progress import counted
from impasto.publishing import path_basename
from impasto.runs import RunDirectory
from impasto.runs.learning import NOTHING_HELD_OUT, Learning, kept_best
from impasto.runs.learning_text import best_text, evidence_text, gap_text
from impasto.runs.mixture import Mixture, mixture_of, named


@dataclass(frozen=True)
class Result:
    """The head of a run's report.

    Attributes:
        base: The base model.
        model: The name of the exported model and, for a mixture, its parts; empty if there is none
            yet.
        best: The name of the best model with its step; empty if it is the exported one.
        sentence: The verdict by the validation loss.
        mood: The colour of the verdict: `good`, `bad` or empty.
        evidence: Sentences with the evidence for the verdict.
        next_step: Advice on what to do next.
        command: The command for the next step; empty if there is none.
    """

    base: str
    model: str
    best: str
    sentence: str
    mood: str
    evidence: tuple[str, ...]
    next_step: str
    command: str = ""


def result_of(run: RunDirectory, settings: Mapping[str, Any], learning: Learning | None) -> Result:
    """Return the result of a run; of paths, only file names are included.

    Args:
        run: The run.
        settings: Its settings, as a tree.
        learning: Its validation loss over time; None if too little was measured.
    """
    name = run.path.resolve().name
    model, best = run.exported_model(), None
    if learning is not None:
        best = kept_best(run, learning)
    is_other = best is not None and best[0] != model
    mixture = mixture_of(run)
    advice, command = _next_step(run, name, learning, best if is_other else None)
    return Result(
        base=base_of(settings),
        model=named(path_basename(str(model)), mixture) if model else "",
        best=(
            named(f"{path_basename(str(best[0]))}, of step {best[1]:,}", mixture_of(run, best[0]))
            if best and is_other
            else ""
        ),
        sentence=NOTHING_HELD_OUT if learning is None else learning.sentence(),
        mood="" if learning is None else learning.mood,
        evidence=_evidence(learning, mixture),
        next_step=advice,
        command=command,
    )


def base_of(settings: Mapping[str, Any]) -> str:
    """Return the base model: a Hub id without its revision, or the last part of a path."""
    section = settings.get("model")
    path = str((section.get("path") if isinstance(section, Mapping) else "") or "")
    name = path.partition("@")[0]
    is_id = is_hub_id(name) and not Path(path).exists()
    return name if is_id else path_basename(path)


def _evidence(learning: Learning | None, mixture: Mixture | None) -> tuple[str, ...]:
    told: list[str] = []
    if mixture is not None:
        told.append(f"the model is {mixture.sentence}")
    if learning is not None:
        told += [f"lowest: {best_text(learning)}", gap_text(learning), evidence_text(learning)]
    return tuple(f"{text[0].upper()}{text[1:]}." for text in told if text)


def _next_step(
    run: RunDirectory, name: str, learning: Learning | None, best: tuple[Path, int] | None
) -> tuple[str, str]:
    """Return advice on the next step, and a command without folders, since reports are shared."""
    drawing = f"impasto sample {quoted(name)} 'a prompt'"
    state = run.state()
    is_cut_short = state.can_go_on and state.state != "finished"  # perhaps while being extended
    if run.exported_model() is None or is_cut_short:
        return "The run is not finished. If it is not training now, resume it:", (
            f"impasto resume {quoted(name)}"
        )
    if learning is None:
        return (
            "Draw with the model and check the images. With held-out images (validation.split), "
            "the next run can report which step was best:"
        ), drawing
    if learning.verdict != "better" and best is not None and learning.is_best_better:
        step = f"Use {path_basename(str(best[0]))}, the model of step {best[1]:,}, not the last"
        return f"{step}. The next run can end there.", ""
    if learning.verdict == "worse":
        return (
            "Do not use this model. Start again with a lower learning rate, or check the images "
            "with the highest loss.", ""
        )  # fmt: skip
    if learning.verdict == "over-fitting" or (
        learning.verdict == "unclear" and learning.is_best_better
    ):
        sooner = f"The next run can end after {counted(learning.best.step, 'steps')}"
        sooner += ", where the loss was lowest."
        if learning.is_last_better:
            return f"{sooner} This model is still better than the base model:", drawing
        kept = " With saving.best_model = true, that model is saved." if best is None else ""
        return f"{sooner}{kept}", ""
    if learning.verdict == "unclear":
        return _when_unclear(learning), ""
    if learning.best is learning.last:
        return (
            "Draw with the model. The loss was still at its lowest, so a longer run may do better:"
        ), drawing
    return (
        "Draw with the last model and with the best one, which the loss cannot distinguish:"
        if best is not None
        else "Draw with the model:"
    ), drawing


def _when_unclear(learning: Learning) -> str:
    if learning.is_clear_on_these:
        return (
            "Compare the samples with the base model's. The next run should hold out more images: "
            "the loss of these images changed, but says too little about others."
        )
    return (
        "Compare the samples with the base model's: the loss cannot distinguish the models. Train "
        "longer, with a higher learning rate, or hold out more images."
    )
