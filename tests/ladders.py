"""Settings to begin with for each way of training, and every rung of the ladder that they take."""

from impasto.config.cases import Facts
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
    """Every rung that is offered, one after the other, as where no memory is enough."""
    taken, changed = [], config
    for rung in LADDER[facts.device]:
        if offers(rung, changed, facts):
            taken = [*(other for other in taken if not rung.replaces(other)), rung]
            changed = with_rungs(config, taken)
    return taken


def begun(train_config, kind, method, **training):
    """Settings of a way of training with an optimizer, from the fixture that makes settings."""
    lr = 1.0 if OPTIMIZERS[kind].finds_lr else 1e-3
    sections = {**METHODS[method], "optimizer": {"kind": kind, "lr": lr}}
    return train_config(**sections, training=training)
