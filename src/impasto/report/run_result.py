"""What a run came to, in words, for the head of its page: base model, result, next step."""

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
    """The head of a run's page.

    Attributes:
        base: The base model.
        model: The name of the exported model, and what it is a mixture of; empty where there is
            none yet.
        best: The name of the best one with its step, where it is another.
        sentence: What the validation loss says.
        mood: What that is coloured by: `good`, `bad` or nothing.
        evidence: What it rests on, in sentences.
        next_step: What to do now.
        command: The command for it; empty where there is none.
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
    """What a run came to; of files only the names are told.

    Args:
        run: The run.
        settings: Its settings, as a tree.
        learning: The course of its validation loss; None where too little was measured.
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
    """The base model: a Hub id without its revision, or the last part of a path."""
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
    """What to do now, and the command for it, which names no folder: pages are given away."""
    drawing = f"impasto sample {quoted(name)} 'a prompt'"
    state = run.state()
    is_cut_short = state.can_go_on and state.state != "finished"  # perhaps while made longer
    if run.exported_model() is None or is_cut_short:
        return "The run is not finished. Go on with it, if it does not train just now:", (
            f"impasto resume {quoted(name)}"
        )
    if learning is None:
        return (
            "Draw with the model and look. With held-out images (validation.split) the next run "
            "can say when it was best:"
        ), drawing
    if learning.verdict != "better" and best is not None and learning.is_best_better:
        step = f"Use {path_basename(str(best[0]))}, the model of step {best[1]:,}, not the last"
        return f"{step}; a next run may end there.", ""
    if learning.verdict == "worse":
        return (
            "Do not use this model. Begin again with a lower learning rate, or look at the images "
            "with the highest loss.", ""
        )  # fmt: skip
    if learning.verdict == "over-fitting" or (
        learning.verdict == "unclear" and learning.is_best_better
    ):
        sooner = f"A next run may end after {counted(learning.best.step, 'steps')}"
        sooner += ", where the loss was lowest."
        if learning.is_last_better:
            return f"{sooner} This model is better than the base model all the same:", drawing
        kept = " With saving.best_model = true that model is kept." if best is None else ""
        return f"{sooner}{kept}", ""
    if learning.verdict == "unclear":
        return _when_unclear(learning), ""
    if learning.best is learning.last:
        return (
            "Draw with the model. The loss was still at its lowest, so a longer run may do better:"
        ), drawing
    return (
        "Draw with the last model and with the best one, which the loss does not tell apart:"
        if best is not None
        else "Draw with the model:"
    ), drawing


def _when_unclear(learning: Learning) -> str:
    if learning.is_clear_on_these:
        return (
            "Compare the samples with the base model's. A next run should hold more images out: "
            "the loss of these changed, and says too little of others."
        )
    return (
        "Compare the samples with the base model's: the loss does not tell them apart. Train "
        "longer, with a higher learning rate, or hold more images out."
    )
