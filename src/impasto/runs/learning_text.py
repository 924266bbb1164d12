"""The sentences for claims about a validation loss, for all who report it to users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impasto.progress import counted
from impasto.runs.evidence import CONFIDENCE
from impasto.runs.validations import MOST_VALUES

if TYPE_CHECKING:
    from impasto.runs.evidence import Difference
    from impasto.runs.learning import Learning
    from impasto.runs.validations import Validation

_MOST_NAMED = 3
_ADVICE = "Train for fewer steps or with a lower learning rate."


def sentence_of(learning: Learning) -> str:
    """Return a sentence on what a run's validations show."""
    if learning.is_broken:
        return (
            f"The last validation loss is not a number: the model was ruined. The lowest was "
            f"{_loss(learning.best)}, after {counted(learning.best.step, 'steps')}. {_ADVICE}"
        )
    if not learning.first.images:
        return _by_limit(learning)
    if learning.to_come is None:
        return (
            f"The validation loss went from {_loss(learning.first)} to {_loss(learning.last)}. "
            f"The end of the run shows whether that is more than chance."
        )
    if not learning.is_known:
        return (
            f"The validation loss went from {_loss(learning.first)} to {_loss(learning.last)}. "
            f"One held-out image cannot show whether that is more than chance, nor can images that "
            f"changed: hold more out (validation.split)."
        )
    told = {
        "worse": _worse,
        "over-fitting": _overfitting,
        "better": _better,
        "unclear": _unclear,
    }[learning.verdict]
    return told(learning)


def model_text(learning: Learning, one: Validation, *, mixed: bool = False) -> str:
    """Return what can be said about the model of one step, compared with the base model.

    Args:
        learning: The course of the validation loss.
        one: The validation of the step.
        mixed: Whether the model is a mixture with the base model, so that the validation is not of
            the model itself.
    """
    if one is learning.first:
        return ""
    what = "What was trained, " if mixed else "This is the model "
    told = (
        f"{what}{_after(one)}{',' if mixed else ': its'} "
        f"{'had a validation loss of' if mixed else 'validation loss is'} {_loss(one)}, that of "
        f"the base model {_loss(learning.first)}, a change of "
        f"{change_text(learning, one, learning.first)}"
    )
    change = learning.compared(one, learning.first)
    if change is None:
        return f"{told}. Whether that is more than chance is not known."
    if change.is_below(learning.chance):
        return f"{told}. It does better on held-out images than the base model."
    if change.is_above(learning.chance):
        return f"{told}. It does worse on held-out images than the base model."
    few = _too_few(learning, change)
    return f"{told}. {few}" if few else f"{told}, which is within the noise of {_values(learning)}."


def best_text(learning: Learning) -> str:
    """Return where the loss was lowest, and which steps may be as good."""
    at = f"{_loss(learning.best)} {_after(learning.best)}"
    if not learning.is_known:
        return at
    others = learning.as_good()
    if not others:
        return f"{at}, below all others by more than chance"
    names = ["the base model" if step == 0 else f"step {step:,}" for step in others]
    # readers are most interested in the steps nearest to the best one
    order = sorted(range(len(others)), key=lambda n: abs(others[n] - learning.best.step))
    shown = [names[n] for n in sorted(order[:_MOST_NAMED])]
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} more")
    *first, last = shown
    named = f"{', '.join(first)} and {last}" if first else last
    return f"{at}, but within the noise of {named}"


def change_text(learning: Learning, one: Validation, other: Validation) -> str:
    """Return the difference of two losses, its standard error, and its percentage of the second."""
    found = learning.compared(one, other)
    change = one.loss - other.loss
    error = "" if found is None else f" ± {found.standard_error:.4f}"
    percent = f" ({100 * change / other.loss:+.0f} %)" if other.loss > 0 else ""
    return f"{change:+.4f}{error}{percent}"


def gap_text(learning: Learning) -> str:
    """Return the gap between losses of held-out and training images; empty if unknown."""
    first, last = learning.first, learning.last
    if first.training is None or last.training is None:
        return ""
    return (
        f"held out minus training images: {first.loss - first.training:+.4f} before, "
        f"{last.loss - last.training:+.4f} after"
    )


def evidence_text(learning: Learning) -> str:
    """Return what the claims are based on; empty if there are none."""
    if not learning.is_known:
        return ""
    return (
        f"± is the standard error over {_values(learning)}; claims are "
        f"{100 * CONFIDENCE:.0f} % certain"
    )


def _values(learning: Learning) -> str:
    values = len(learning.last.images)
    what = "parts of the held-out images" if values >= MOST_VALUES else "held-out images"
    return counted(values, what)


def _worse(learning: Learning) -> str:
    change = change_text(learning, learning.last, learning.first)
    best = ""
    if learning.is_best_better:
        best = f" It was lowest, {_loss(learning.best)}, {_after(learning.best)}."
    return (
        f"The model does worse on held-out images than the base model: the validation loss rose "
        f"from {_loss(learning.first)} to {_loss(learning.last)}, a change of {change}.{best} "
        f"{_ADVICE}"
    )


def _overfitting(learning: Learning) -> str:
    best, last = learning.best, learning.last
    start = (
        f"The validation loss was lowest, {_loss(best)}, {_after(best)} and has risen since to "
        f"{_loss(last)}, a change of {change_text(learning, last, best)}"
    )
    if best.training is None or last.training is None or last.training <= best.training:
        return f"{start}: the model is over-fitting. {_ADVICE}"
    return (
        f"{start}. That of the training images rose as well, from {best.training:.4f} to "
        f"{last.training:.4f}, so that images are learnt by heart is not the cause, or not the "
        f"only one: the learning rate is too high. {_ADVICE}"
    )


def _better(learning: Learning) -> str:
    change = change_text(learning, learning.last, learning.first)
    start = (
        f"The validation loss fell from {_loss(learning.first)} to {_loss(learning.last)}, a "
        f"change of {change}"
    )
    if learning.best is learning.last:
        return f"{start}. That is its lowest: no sign of over-fitting."
    return (
        f"{start}. It was lowest, {_loss(learning.best)}, {_after(learning.best)}; that it rose "
        f"since is within the noise."
    )


def _unclear(learning: Learning) -> str:
    change = change_text(learning, learning.last, learning.first)
    few = _too_few(learning, learning.compared(learning.last, learning.first))
    if few:
        return (
            f"The validation loss went from {_loss(learning.first)} to {_loss(learning.last)}, a "
            f"change of {change}. {few}"
        )
    start = (
        f"The validation loss, {_loss(learning.last)}, cannot be distinguished from that of "
        f"the base model, {_loss(learning.first)}: the change of {change} is "
        f"within the noise of {_values(learning)}."
    )
    if learning.is_best_better and learning.best is not learning.last:
        return (
            f"{start} {_after(learning.best).capitalize()} it was better, {_loss(learning.best)}."
        )
    return f"{start} More held-out images or more steps would make it clear."


def _too_few(learning: Learning, change: Difference | None) -> str:
    """Return why a change that looks clear is not claimed; empty if it does not look clear."""
    if change is None or not change.is_clear_if_gaussian(learning.chance):
        return ""
    return (
        f"On these images that is clear, but {_values(learning)} are too few, or change too "
        f"unevenly, to rule out that a few others change far more, the other way. More held-out "
        f"images would make it clear."
    )


def _by_limit(learning: Learning) -> str:
    """Return the verdict on runs without losses of images, by a fixed limit that it names."""
    first, best, last = learning.first, learning.best, learning.last
    doubt = "(by a fixed limit of 2 %: this run did not record a standard error)"
    if learning.is_overfitting:
        return (
            f"The validation loss was lowest, {best.loss:.4f}, after {counted(best.step, 'steps')} "
            f"and has risen since: the model is over-fitting {doubt}. {_ADVICE}"
        )
    if best is first:
        return (
            f"The validation loss, {last.loss:.4f}, is not below that of the base model, "
            f"{best.loss:.4f}: nothing that helps with the held-out images was learnt yet {doubt}."
        )
    if best is last:
        return (
            f"The validation loss is at its lowest, {best.loss:.4f}, down from {first.loss:.4f}: "
            f"no sign of over-fitting {doubt}."
        )
    return (
        f"The validation loss was lowest, {best.loss:.4f}, after {counted(best.step, 'steps')} and "
        f"has hardly changed since: no sign of over-fitting {doubt}."
    )


def _loss(one: Validation) -> str:
    error = "" if one.standard_error is None else f" ± {one.standard_error:.4f}"
    return f"{one.loss:.4f}{error}"


def _after(one: Validation) -> str:
    return "with the base model" if one.step == 0 else f"after {counted(one.step, 'steps')}"
