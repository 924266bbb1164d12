"""Initial settings for each way of training, and the memory ladder's rungs for them."""

from impasto.config.cases import Facts
from impasto.config.compatibility import goes_together
from impasto.optimizer_table import OPTIMIZERS
from impasto.training.planning.levers import LADDER, offers, with_rungs

METHODS = {
    "full": {},
    "full with the text encoder": {"method": {"train_text_encoder": True}},
    "hypernetwork": {
        "method": {"kind": "hypernetwork"},
        "saving": {"format": "a1111", "export_dtype": "fp32"},
    },
}
FACTS = {
    "CPU": Facts("cpu", 1, ""),
    "GPU": Facts("cuda", 1, ""),
    "two GPUs": Facts("cuda", 2, ""),
    "FSDP": Facts("cuda", 2, "FSDP"),
    "DeepSpeed": Facts("cuda", 2, "DeepSpeed"),
}


def rungs_taken(config, facts):
    """Return every rung that is offered, one after the other, as if memory never sufficed."""
    taken, changed = [], config
    for rung in LADDER[facts.device]:
        if offers(rung, changed, facts):
            taken = [*(other for other in taken if not rung.replaces(other)), rung]
            changed = with_rungs(config, taken)
    return taken


BEGUN_ON_GPU = {
    f"ladder of {kind}, {method}, {half}": (kind, method, half)
    for kind, method in (
        ("adamw", "full"),
        ("adafactor", "full with the text encoder"),
        ("adamw_schedule_free", "full"),
        ("adamw", "hypernetwork"),
    )
    for half in ("fp16", "no")
}
"""Name -> optimizer, method and precision; other optimizers end on the same rungs as these."""


def bottom_of_ladder(name, build, without=()):
    """Return settings of one step with every applicable rung for GPUs taken.

    Args:
        name: A key of `BEGUN_ON_GPU`.
        build: Builds a configuration from settings.
        without: Rungs that are left out.
    """
    kind, method, half = BEGUN_ON_GPU[name]
    training = {"max_steps": 1, "mixed_precision": half}
    settings = {**METHODS[method], "optimizer": {"kind": kind}, "training": training}
    config = build(settings)
    assert goes_together(config, FACTS["GPU"])
    for rung in rungs_taken(config, FACTS["GPU"]):
        if rung not in without:
            for section, fields in rung.changes.items():
                settings[section] = {**settings.get(section, {}), **fields}
    return settings


def begun(train_config, kind, method, **training):
    """Return settings of a way of training with an optimizer, built by `train_config`."""
    lr = 1.0 if OPTIMIZERS[kind].finds_lr else 1e-3
    sections = {**METHODS[method], "optimizer": {"kind": kind, "lr": lr}}
    return train_config(**sections, training=training)
