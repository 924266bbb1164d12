"""Notes for the user on a single file: repairs, averages, unknown tensors, the noise schedule."""

from __future__ import annotations

from impasto.checkpoints.ldm import LdmModel
from impasto.models.reading.stored_schedule import unusual_schedule
from impasto.progress import counted


def notes_on(ldm: LdmModel, *, zero_terminal_snr: bool) -> tuple[str, ...]:
    """Return the notes on a single file's contents.

    Args:
        ldm: The contents.
        zero_terminal_snr: Whether the noise schedule that will be used ends in pure noise.
    """
    notes = [*ldm.notes, *unusual_schedule(ldm.ldm_only, zero_terminal_snr=zero_terminal_snr)]
    if ldm.ema:
        averages = counted(len(ldm.ema), "tensors")
        notes.append(f"holds averaged (EMA) weights beside the plain ones: {averages}")
    if ldm.foreign:
        shown = ", ".join(ldm.foreign[:3]) + (" ..." if len(ldm.foreign) > 3 else "")
        notes.append(
            f"skipped, since their purpose is unknown: {counted(len(ldm.foreign), 'tensors')} "
            f"({shown})"
        )
    return tuple(notes)
