"""The plan of a new run, as plain values for templates, without HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.progress import counted, duration_text, size_text
from impasto.studio.found_masks import FIELD as MASKS
from impasto.studio.plans import PlanState

_MIB = 2**20


def masks_taken(told: Any, fields: Mapping[str, str]) -> str:
    """Return a sentence about masks that a copied run uses but the original did not, or "".

    Args:
        told: The record of the masks that was made with the copy.
        fields: The current form fields; if the mask folder was changed, the result is empty.
    """
    if not isinstance(told, Mapping) or told.get("field") != fields.get(MASKS):
        return ""
    number, images = told.get("number"), told.get("images")
    if not isinstance(number, int) or not isinstance(images, int):
        return ""
    return (
        f"{number:,} of the {counted(images, 'images')} {'has' if number == 1 else 'have'} a mask "
        f"now, which the run did not use. This copy does: {MASKS} is set to their folder. Empty "
        f"that field to train without them."
    )


def plan_view(state: PlanState) -> dict[str, Any]:
    """Return the variables of `new_plan.html.j2` for a plan."""
    plan, error = state.result, state.result.get("error") or {}
    view: dict[str, Any] = {
        "is_running": state.is_running,
        "stage": state.stage,
        "failure": state.failure,
        "error": str(error.get("message", "")),
        "rows": [],
        "memory": None,
        "warnings": [],
        "skipped": [],
        "notes": [],
    }
    if "steps" not in plan:
        return view
    doubt = [plan["doubt"]] if plan.get("doubt") else []
    return view | {
        "rows": [*_rows(plan)],
        "memory": _memory(plan["memory"]),
        "warnings": [*doubt, *plan["warnings"]],
        "skipped": plan["data"]["skipped"][:20],
        "notes": plan["notes"],
    }


def _rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    data, steps, disk, model = plan["data"], plan["steps"], plan["disk"], plan["model"]
    images = [f"{data['images']:,}"]
    kinds = {
        "regularisation_used": "for regularisation",
        "held_out": "held out",
        "without_words": "without a caption",
        "masked": "with a mask",
    }
    for key, text in kinds.items():
        images += [f"{data[key]:,} {text}"] if data.get(key) else []
    images += [f"{len(data['skipped']):,} skipped"] if data["skipped"] else []
    captions = (
        [f"{data['too_long']:,} over {data['max_tokens']} tokens"] if data["too_long"] else []
    )
    buckets = len(data["buckets"])
    return [
        ("Model", f"{model['family']}, predicts {model['predicts']}"),
        ("Images", ", ".join(images)),
        *([("Captions", ", ".join(captions))] if captions else []),
        ("Buckets", f"{buckets}: {', '.join(list(data['buckets'])[:8])}{' ...' * (buckets > 8)}"),
        ("Steps", f"{steps['total']:,}; {steps['epochs']:.1f} epochs of {steps['per_epoch']:,}"),
        *([("Exposure", _looks(steps["exposure"]))] if steps.get("exposure") else []),
        (
            "Time",
            f"about {duration_text(steps['seconds'])}, {duration_text(steps['seconds_each'])} "
            f"per step, on this {'GPU' if steps['device'] == 'cuda' else 'CPU'}",
        ),
        ("Disk", f"{size_text(disk['total_bytes'])} of {size_text(disk['free_bytes'])} free"),
    ]


def _looks(exposure: dict[str, Any]) -> str:
    low, high = exposure["usual_looks"]
    return (
        f"each image is seen {exposure['looks']:.3g} times, {exposure['per_step']:.3g} images per "
        f"step; {low} to {high} times are usual for {counted(exposure['images'], 'images')}"
    )


def _memory(memory: dict[str, Any]) -> dict[str, Any]:
    total, budget = memory["total"], max(1, memory["budget"])
    scale = max(total, budget)
    return {
        "phase": memory["phase"],
        "total": size_text(total),
        "budget": size_text(budget),
        "fits": total <= budget,
        "share": round(100 * total / budget),
        "parts": [
            {"name": name, "size": size_text(size), "mib": round(size / _MIB)}
            for name, size in memory["parts"].items()
        ],
        "max_mib": round(scale / _MIB),
        "total_mib": round(total / _MIB),
    }
