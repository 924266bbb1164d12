"""What goes together: the table is asked by all, and what the ladder chooses can be built."""

import itertools

import pytest

from impasto.config.compatibility import RULES, Facts, conflicts, goes_together
from impasto.config.load import build_run_config, dump_toml
from impasto.config.run import RunConfig
from impasto.optimizer_table import OPTIMIZERS
from impasto.parsing import parse_toml
from impasto.training.build import build_session
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents
from impasto.training.overrides import Overrides
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
OF_EACH_SORT = ("adamw", "paged_adamw8bit", "lion", "adafactor", "prodigy", "adamw_schedule_free")


def rungs_taken(config, facts):
    """Every rung that is offered, one after the other, as where no memory is enough."""
    taken = []
    for rung in LADDER[facts.device]:
        if offers(rung, with_rungs(config, taken), facts):
            taken = [*(other for other in taken if not rung.replaces(other)), rung]
    return taken


def begun(train_config, kind, method, **training):
    lr = 1.0 if OPTIMIZERS[kind].finds_lr else 1e-3
    sections = {**METHODS[method], "optimizer": {"kind": kind, "lr": lr}}
    return train_config(**sections, training=training)


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_the_ladder_offers_goes_together_and_is_read_again(train_config, method, facts):
    for kind, extra in itertools.product(
        OPTIMIZERS, ({}, {"gradient_accumulation_steps": 2}, {"ema_decay": 0.9})
    ):
        if extra.get("ema_decay") and OPTIMIZERS[kind].averages_weights:
            continue
        config = begun(train_config, kind, method, **extra)
        if not goes_together(config, facts):
            continue  # refused from the start, with these words
        chosen = with_rungs(config, rungs_taken(config, facts))
        assert list(conflicts(chosen, facts)) == [], (kind, extra)
        text = dump_toml(chosen)
        again = build_run_config(parse_toml(text), source="test")
        assert dump_toml(again) == text


@pytest.mark.parametrize("kind", OF_EACH_SORT)
@pytest.mark.parametrize("method", METHODS)
def test_what_the_ladder_chooses_is_built(
    train_config, tmp_path, kind, method, fresh_accelerate, monkeypatch
):
    """All of it on a processor; of what is for a GPU, what a processor can build too."""
    for name in ("CPU", "GPU"):
        config = begun(train_config, kind, method)
        rungs = [
            rung
            for rung in rungs_taken(config, FACTS[name])
            if "offload_optimizer" not in rung.words() and "fp16" not in rung.words()
        ]
        chosen = with_rungs(config, rungs)
        run = tmp_path / f"run-{name}"
        run.mkdir()
        chosen = chosen.model_copy(update={"output_dir": run})
        session = build_session(chosen, build_accelerator(), SilentEvents(), Overrides())
        assert session.total_steps == 6


def test_rows_name_settings_that_exist():
    for rule in RULES:
        for setting in rule.settings:
            section, field = setting.split(".")
            annotation = RunConfig.model_fields[section].annotation
            assert field in annotation.model_fields, setting


def test_prodigy_is_not_offered_steps_in_the_backward_pass(train_config):
    config = begun(train_config, "prodigy", "full", memory="auto")
    words = " ".join(rung.words() for rung in rungs_taken(config, FACTS["GPU"]))
    assert "optimizer_in_backward" not in words
    assert "weights" not in words
    assert "offload_optimizer" not in words
    assert "gradient_checkpointing" in words
