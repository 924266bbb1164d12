"""The form of the page "Draw": converts its fields to a drawing request, and back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData

from impasto.runs.draw_reading import read_request, split_values
from impasto.runs.draw_requests import DrawRequest
from impasto.studio.drawable import Drawable

HYPERNETWORKS = 3
"""Number of hypernetwork fields in the form."""

_TEXTS = {
    "model": "", "other_model": "", "prompt": "", "negative": "", "seed": "1", "width": "",
    "height": "", "steps": "20", "guidance": "7", "sampler": "ddim", "count": "1", "clip_skip": "",
    "guidance_rescale": "", "x_kind": "", "x_values": "", "y_kind": "", "y_values": "",
    **{f"hypernetwork{n}": "" for n in range(HYPERNETWORKS)},
    **{f"strength{n}": "1" for n in range(HYPERNETWORKS)},
}  # fmt: skip
_PASSED_ON = (
    "prompt", "negative", "width", "height", "steps", "guidance", "sampler", "count", "clip_skip",
    "guidance_rescale",
)  # fmt: skip
_RANDOM_SEEDS = 2**32  # the range of A1111's random seeds

Typed = dict[str, Any]
"""Field -> typed text; but `random_seed` is a bool, and `axis_models` a list."""


def untouched() -> Typed:
    """Return the initial values of the form."""
    return {**_TEXTS, "random_seed": True, "axis_models": []}


def drawn_with(address: str, drawable: Drawable) -> Typed:
    """Return the initial values of the form, with a model or hypernetwork chosen by address."""
    typed = untouched()
    if len(drawable.models) == 1:
        typed["model"] = next(iter(drawable.models))
    if address in drawable.models:
        typed["model"] = address
    elif address in drawable.hypernetworks:
        typed["hypernetwork0"] = address
    return typed


def typed_in(form: FormData) -> Typed:
    """Return the values of a submitted form; files count as empty fields."""
    found: Typed = {
        name: value if isinstance(value := form.get(name, ""), str) else "" for name in _TEXTS
    }
    for name in ("prompt", "negative", "x_values", "y_values"):
        found[name] = found[name].replace("\r\n", "\n")  # browsers send CRLF
    chosen = [value for value in form.getlist("axis_models") if isinstance(value, str)]
    return {**found, "random_seed": "random_seed" in form, "axis_models": chosen}


def request_from(typed: Typed, drawable: Drawable) -> tuple[DrawRequest | None, dict[str, str]]:
    """Convert the values of the form to a request.

    Args:
        typed: The values of the form.
        drawable: The models and hypernetworks that can be chosen; other addresses are refused.

    Returns:
        The request, or None if there are faults; and the faults by field.
    """
    values: dict[str, Any] = {name: typed[name] for name in _PASSED_ON}
    faults: dict[str, str] = {}
    is_random = typed["random_seed"]
    values["seed"] = secrets.randbelow(_RANDOM_SEEDS) if is_random else typed["seed"]
    values["random_seed"] = is_random
    values["model"] = _model(drawable, typed["model"], "model", faults)
    values["hypernetworks"] = _hypernetworks(typed, drawable, faults)
    for name in ("x", "y"):
        values[name] = _axis(name, typed, drawable, faults)
    if typed["other_model"]:
        other = _model(drawable, typed["other_model"], "other_model", faults)
        _add_other(values, other, faults)
    request, found = read_request(values)
    faults = {**found, **faults}
    return (None if faults else request), faults


def typed_from(request: DrawRequest, drawable: Drawable) -> Typed:
    """Return the values of the form for a request; models that no longer exist are left out."""
    settings = request.settings
    found = untouched()
    for name in ("prompt", "negative", "sampler"):
        found[name] = getattr(settings, name)
    for name in ("seed", "width", "height", "steps"):
        found[name] = _text(getattr(settings, name))
    found["guidance"] = f"{settings.guidance:g}"
    rescale = settings.guidance_rescale
    found["guidance_rescale"] = "" if rescale is None else f"{rescale:g}"
    found["count"], found["clip_skip"] = str(request.count), _text(request.clip_skip)
    found["random_seed"] = request.random_seed
    found["model"] = drawable.address_of(settings.model)
    for number, (path, strength) in enumerate(request.hypernetworks[:HYPERNETWORKS]):
        found[f"hypernetwork{number}"] = drawable.address_of(path)
        found[f"strength{number}"] = f"{strength:g}"
    for name, axis in (("x", request.x), ("y", request.y)):
        if axis is None:
            continue
        found[f"{name}_kind"] = axis.kind
        if axis.kind == "model":
            addresses = [drawable.address_of(value) for value in axis.values]
            found["axis_models"] = [address for address in addresses if address]
        else:
            found[f"{name}_values"] = "\n".join(axis.values)
    _fold_other(found, request)
    return found


def _fold_other(found: Typed, request: DrawRequest) -> None:
    """Convert axes made from the field "Side by side with" back to that field."""
    models, seeds = request.x, request.y
    if models is None or models.kind != "model" or len(found["axis_models"]) != len(models.values):
        return
    if len(models.values) != 2 or models.values[0] != request.settings.model:
        return
    found["other_model"] = found["axis_models"][1]
    found["x_kind"], found["axis_models"] = "", []
    first = request.settings.seed
    if seeds is None or seeds.kind != "seed" or request.count != 1:
        return
    if seeds.values == tuple(str(first + n) for n in range(len(seeds.values))):
        found["count"] = str(len(seeds.values))
        found["y_kind"] = found["y_values"] = ""


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _model(drawable: Drawable, address: str, field: str, faults: dict[str, str]) -> str:
    choice = drawable.models.get(address)
    if choice is None:
        faults[field] = (
            "This model no longer exists." if address else "Choose a model to draw with."
        )
    return "" if choice is None else str(choice.path)


def _hypernetworks(
    typed: Typed, drawable: Drawable, faults: dict[str, str]
) -> list[tuple[str, str]]:
    found = []
    for number in range(HYPERNETWORKS):
        address = typed[f"hypernetwork{number}"]
        choice = drawable.hypernetworks.get(address)
        if choice is not None:
            found.append((str(choice.path), typed[f"strength{number}"]))
        elif address:
            faults["hypernetworks"] = "This hypernetwork no longer exists."
    if len({path for path, _ in found}) < len(found):
        faults["hypernetworks"] = "The same hypernetwork is chosen twice."
    return found


def _axis(
    name: str, typed: Typed, drawable: Drawable, faults: dict[str, str]
) -> Mapping[str, Any] | None:
    kind = typed[f"{name}_kind"]
    if not kind:
        return None
    if kind != "model":
        return {"kind": kind, "values": split_values(typed[f"{name}_values"])}
    chosen = [drawable.models.get(address) for address in typed["axis_models"]]
    if not chosen or None in chosen:
        faults[name] = "Choose the models of the axis below."
    return {"kind": kind, "values": [str(choice.path) for choice in chosen if choice is not None]}


def _add_other(values: dict[str, Any], other: str, faults: dict[str, str]) -> None:
    """Add a second model for a side-by-side comparison: the models become the free axis."""
    if other and other == values["model"]:
        faults["other_model"] = "Choose a different model from the first one."
    free = next((name for name in ("x", "y") if values[name] is None), None)
    if free is None:
        faults["other_model"] = "Both axes are used. Leave one empty, or choose no second model."
        return
    if "model" in (axis["kind"] for axis in (values["x"], values["y"]) if axis is not None):
        faults["other_model"] = "An axis already varies the model. Choose no second model here."
        return
    values[free] = {"kind": "model", "values": [values["model"] or "?", other or "?"]}
    base, _ = read_request({**values, "x": None, "y": None, "hypernetworks": []})
    if base is not None and values["y"] is None and base.count > 1:
        first = base.settings.seed
        seeds = [str(first + n) for n in range(base.count)]
        values["y"], values["count"] = {"kind": "seed", "values": seeds}, "1"
