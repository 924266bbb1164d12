"""What a run says of itself before its first update, to people and in its directory."""

from __future__ import annotations

from impasto import files
from impasto.progress import counted
from impasto.runs import RunDirectory
from impasto.training.advice import advice_on
from impasto.training.events import TrainingEvents
from impasto.training.session import Session


def announce(session: Session, run: RunDirectory, events: TrainingEvents, step: int) -> None:
    """Write `dataset.json` and the status, warn of what is unusual, and begin the display.

    Args:
        session: What is trained.
        run: Where the first process writes.
        events: Who is told.
        step: Updates that are done already.
    """
    config = session.config
    texts = [image.record.steady_caption for image in session.prepared.training.images]
    dataset = {
        **session.prepared.summary(),
        "too_long": session.conditioner.too_long(texts),
        "max_tokens": config.model.max_tokens,
    }
    if session.accelerator.is_main_process:
        files.write_json(run.path / "dataset.json", dataset)
        run.write_status("training", step=step, total_steps=session.total_steps)
    if session.placement.words:
        events.note(session.placement.words)
    for line in advice_on(config, session.model.identity, session.accelerator.device):
        events.note(f"Warning: {line}")
    shown = sorted({text for prompt in session.previewer.prompts for text in prompt.texts})
    if cut := session.conditioner.too_long(shown):
        events.note(
            f"Warning: {counted(cut, 'prompts of previews have')} over {config.model.max_tokens} "
            f"tokens; their ends are not seen."
        )
    events.started(
        {
            "family": session.model.identity.family.name,
            "prediction": session.model.identity.prediction.name,
            "parts": {part.name: part.count() for part in session.trainable.parts},
            "device": str(session.accelerator.device),
            "processes": session.accelerator.num_processes,
            "updates_per_epoch": session.sampler.updates_per_epoch,
            **dataset,
        },
        step,
        session.total_steps,
    )
