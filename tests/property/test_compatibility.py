"""Compatible settings: one table decides everywhere, also in the memory ladder."""

import itertools
import os
import re

import pytest
from ladders import FACTS, METHODS, begun, rungs_taken

from impasto.cli.console import Console
from impasto.cli.plan import show_plan
from impasto.config.cases import Facts
from impasto.config.compatibility import RULES, conflicts, goes_together
from impasto.config.kinds import sections_of
from impasto.config.load import build_run_config, dump_toml
from impasto.config.run import RunConfig
from impasto.errors import ConfigError, ImpastoError, ModelError, RunError
from impasto.optimizer_table import OPTIMIZERS, row_of
from impasto.parsing import parse_toml
from impasto.training.compute import precision
from impasto.training.compute.precision import resolve_precision
from impasto.training.events import SilentEvents
from impasto.training.planning.changes import with_fields
from impasto.training.planning.levers import (
    EIGHT_BITS,
    WEIGHTS_BF16,
    offers,
    touches_asked,
    with_rungs,
)
from impasto.training.planning.out_of_memory import ways
from impasto.training.trainer import train


def advised(config):
    return [way.text for way in ways(config, "training")]


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
            continue  # refused from the start, with these messages
        chosen = with_rungs(config, rungs_taken(config, facts))
        assert list(conflicts(chosen, facts)) == [], (kind, extra)
        text = dump_toml(chosen)
        again = build_run_config(parse_toml(text), source="test")
        assert dump_toml(again) == text


def test_rows_name_settings_that_exist():
    for rule in RULES:
        for setting in rule.settings:
            section, field = setting.split(".")
            own = RunConfig.model_fields[section]
            sections = [*sections_of(own).values()] or [own.annotation]
            assert any(field in one.model_fields for one in sections), setting


@pytest.mark.parametrize("decay", [0, 0.0, "0%"])
def test_a_fall_at_the_end_needs_its_length(train_config, decay):
    schedule = {"kind": "warmup_stable_decay", "warmup_steps": 2}
    with pytest.raises(ConfigError, match="needs decay_steps"):
        train_config(schedule={**schedule, "decay_steps": decay})
    train_config(schedule={**schedule, "decay_steps": 4})


def test_prodigy_is_not_offered_steps_in_the_backward_pass(train_config):
    config = begun(train_config, "prodigy", "full", memory="auto")
    words = " ".join(rung.text() for rung in rungs_taken(config, FACTS["GPU"]))
    assert "optimizer_in_backward" not in words
    assert "weight_dtype" not in words
    assert "offload_optimizer" not in words
    assert "gradient_checkpointing" in words


def test_what_auto_stands_for_does_not_count_as_asked(train_config):
    """Values chosen by "auto" do not block rungs, such as those of 16-bit weights, which set
    them too."""
    config = train_config(training={"memory": "auto", "mixed_precision": "auto"})
    resolved = resolve_precision(config, SilentEvents())
    assert resolved.training.mixed_precision != "auto"
    assert "mixed_precision" not in resolved.training.model_fields_set
    asked = train_config(training={"mixed_precision": "bf16"})
    assert not touches_asked(WEIGHTS_BF16, asked)  # it would set the requested value
    assert touches_asked(WEIGHTS_BF16, train_config(training={"mixed_precision": "no"}))


def test_arguments_of_an_optimizer_keep_it(train_config):
    """bitsandbytes' AdamW takes other arguments, so changing the kind would make the run
    invalid."""
    config = train_config(optimizer={"kind": "adamw", "arguments": {"amsgrad": True}})
    assert not offers(EIGHT_BITS, config)
    for kind in ("adamw", "AdamW", "torch.optim.AdamW"):
        assert offers(EIGHT_BITS, train_config(optimizer={"kind": kind})), kind


@pytest.mark.parametrize(
    ("training", "not_advised"),
    [
        ({"optimizer_in_backward": "exact"}, "gradient_accumulation_steps"),
        ({"cuda_graphs": True, "compile": "full"}, "gradient_accumulation_steps"),
        ({"cuda_graphs": True, "compile": "blocks"}, "gradient_checkpointing"),
        ({"ema_decay": 0.9}, "ema_on_cpu"),  # on a CPU
    ],
)
def test_nothing_is_advised_that_would_be_refused(train_config, training, not_advised):
    config = train_config(training={"batch_size": 4, **training})
    assert not any(not_advised in way for way in advised(config))


@pytest.mark.parametrize(
    ("settings", "says", "says_not"),
    [
        ({"training": {"batch_size": 4}}, "steps = 2 (the same training, in", "batch_size of"),
        ({"training": {"batch_size": 5}}, "steps = 3 (smaller batches, and about", "the same"),
        (
            {"training": {"batch_size": 4, "batch_by_pixels": True}},
            "steps = 2 (smaller batches, and about",
            "the same",
        ),
        (
            {"training": {"batch_size": 2}, "dataset": {"batch_size": 4}},
            "a smaller batch_size of the dataset that sets its own (now 4)",
            "training.batch_size",
        ),
    ],
)
def test_a_smaller_batch_is_advised_where_it_makes_the_largest_smaller(
    train_config, settings, says, says_not
):
    told = "; ".join(advised(train_config(**settings)))
    assert says in told
    assert says_not not in told


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"text_encoder_lr": 1e-5},
        {"text_encoder_lrs": {"text_encoder": 1e-5}},
        {"text_encoder_layers": 1, "text_encoder_from_step": 1, "text_encoder_until_step": 3},
    ],
)
def test_a_text_encoder_is_advised_to_rest_without_its_own_settings(train_config, own):
    """Advice to freeze the text encoder, followed literally, gives an accepted run."""
    config = train_config(method={"train_text_encoder": True, **own})
    (way,) = [way for way in advised(config) if "train_text_encoder" in way]
    assert way.startswith("method.train_text_encoder = false")
    named = {setting for setting in own if re.search(rf"method\.{setting}\b", way)}
    left = {name: value for name, value in own.items() if name not in named}
    train_config(method={"train_text_encoder": False, **left})


@pytest.mark.parametrize("kind", ["prodigy", "adamw_schedule_free"])
def test_no_16_bit_weights_are_advised_to_what_looks_at_all_weights(train_config, kind):
    config = train_config(optimizer={"kind": kind, "lr": 1.0})
    assert not any("weight_dtype" in way for way in advised(config))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("ScheduleFreeAdamW", "adamw_schedule_free"),
        ("bitsandbytes.optim.PagedAdamW8bit", "paged_adamw8bit"),
        ("pytorch_optimizer.Prodigy", "prodigy"),
        ("bitsandbytes.optim.Lion", "lion"),
    ],
)
def test_a_class_is_known_by_any_of_its_names(kind, row):
    known, same = row_of(kind), OPTIMIZERS[row]
    for column in ("finds_lr", "averages_weights", "is_elementwise", "has_8bit_states", "is_paged"):
        assert getattr(known, column) == getattr(same, column), column
    assert known.state_bytes == same.state_bytes


def test_a_text_encoder_that_begins_after_the_last_epoch_is_refused(train_config):
    config = train_config(
        method={"train_text_encoder": True, "text_encoder_from_step": 8},
        training={"max_steps": None, "max_epochs": 1},
    )
    assert goes_together(config)
    (sentence,) = conflicts(config, Facts(total_steps=4))
    assert "after 4 steps: the text encoder would never learn" in sentence


def test_a_form_that_cannot_say_what_is_trained_is_refused_before_training(train_config):
    config = train_config(
        method={"kind": "hypernetwork"},
        hypernetwork={"activation": "hardswish"},
        saving={"format": "portable", "export_dtype": "fp32"},
    )
    with pytest.raises(ModelError, match="ComfyUI does not know the activation hardswish"):
        train(config)
    assert not config.output_dir.exists()


REFUSED = {
    "on a CPU": {"training": {"cuda_graphs": True, "compile": "full"}},
    "xformers": {"training": {"attention": "xformers"}},
    "offload": {"training": {"offload_optimizer": True}},
    "an optimizer": {"optimizer": {"kind": "soap"}},
    "a hypernetwork": {"previews": {"hypernetworks": ["missing.pt"], "prompts": ["a"]}},
    "a block": {"method": {"block_lrs": {"up_blocks.3": 1e-4}}},
    "a file of previews, and graphs": {
        "previews": {"hypernetworks": ["missing.pt"], "prompts": ["a"]},
        "training": {"cuda_graphs": "step"},
    },
    "the prediction, and a block": {
        "loss": {"v_loss_as_noise_loss": True},
        "training": {"fit_check": True},
        "method": {"block_lrs": {"up_blocks.3": 1e-4}},
    },
    "the prediction, and a file of templates": {
        "loss": {"v_loss_as_noise_loss": True},
        "training": {"fit_check": True},
        "method": {"kind": "hypernetwork", "template_file": "missing.txt"},
    },
    "a block, and an average over more steps than there are": {
        "method": {"block_lrs": {"up_blocks.3": 1e-4}},
        "training": {"max_steps": None, "max_epochs": 1, "ema_decay": 0.9, "ema_every": 99},
    },
    "a block, with the memory unchecked, and a file of previews": {
        "method": {"block_lrs": {"up_blocks.3": 1e-4}},
        "training": {"fit_check": False},
        "previews": {"features": "missing", "prompts": ["a"]},
    },
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_the_plan_refuses_what_training_refuses(train_config, changes, fresh_accelerate):
    said = []
    for attempt in (show_plan, train):
        with pytest.raises(ImpastoError) as caught:
            attempt(train_config(**changes), *([Console()] if attempt is show_plan else []))
        said.append(str(caught.value))
    assert said[0] == said[1]


TAKEN = {
    "": r"cannot be a run directory: it is a file",
    "below": r"cannot be a run directory: .* is a file",
    "in it": "already exists and is not empty",
    "read-only": r"cannot be a run directory: the folder .* is read-only, or belongs to another",
}


@pytest.mark.parametrize("place", TAKEN)
def test_a_plan_names_a_taken_directory_after_its_numbers(
    train_config, capsys, fresh_accelerate, monkeypatch, place
):
    """The plan reports a used directory like training; with a run in it, that run is planned."""
    config = train_config()
    free = config.output_dir
    if place == "in it":
        free.mkdir()
        (free / "somebody's.txt").write_text("")
    elif place == "read-only":  # root, who may run this, is never refused
        may = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: path != free.parent and may(path, mode)
        )
    else:
        free.write_text("")
        if place == "below":
            config = config.model_copy(update={"output_dir": free / "deeper" / "run"})
    said = []
    for attempt in (lambda: show_plan(config, Console()), lambda: train(config)):
        with pytest.raises(RunError, match=TAKEN[place]) as caught:
            attempt()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "Memory" in capsys.readouterr().out
    if place == "in it":
        (config.output_dir / "config.toml").write_text("")
        show_plan(config, Console())


def test_what_auto_stands_for_outlives_other_changes(train_config, monkeypatch):
    """A change of another setting of the section is validated with "auto"'s value and keeps it."""
    monkeypatch.setattr(precision, "computed_kind", lambda _: "bf16")
    resolved = resolve_precision(train_config(training={"mixed_precision": "auto"}), SilentEvents())
    changed = with_fields(resolved, "training", {"gradient_checkpointing": True})
    assert changed.training.mixed_precision == "bf16"
    assert changed.training.max_steps == resolved.training.max_steps
    assert "mixed_precision" not in changed.training.model_fields_set
    assert "gradient_checkpointing" in changed.training.model_fields_set


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        (
            {"optimizer": {"kind": "paged_adamw8bit"}, "training": {"offload_optimizer": True}},
            Facts(),
            "no effect on optimizer.kind paged_adamw8bit",
        ),
        (
            {"loss": {"v_loss_as_noise_loss": True}},
            Facts(predicts_velocity=False),
            "is for velocity models",
        ),
        ({"model": {"clip_skip": 2}}, Facts(takes_clip_skip=False, family="SDXL"), "not for SDXL"),
        (
            {"loss": {"noise_loss_like_v": 0.5}},
            Facts(predicts_velocity=True),
            "for models that predict noise",
        ),
        (
            {"loss": {"debiased": True}, "noise": {"zero_terminal_snr": True}},
            Facts(predicts_velocity=False),
            "infinite at the timestep of pure noise",
        ),
        (
            {"loss": {"uncertainty": True}, "noise": {"zero_terminal_snr": True}},
            Facts(predicts_velocity=False),
            "infinite at the timestep of pure noise",
        ),
        (
            {
                "optimizer": {
                    "kind": "prodigy",
                    "weight_decay": 0.01,
                    "arguments": {"weight_decouple": False},
                }
            },
            Facts(),
            "weight_decay would have no effect",
        ),
        (
            {"optimizer": {"start_decay": 1.0}},
            Facts(sharding="FSDP", processes=2),
            "a model that is sharded by FSDP",
        ),
        (
            {
                "training": {"posthoc_ema": True, "ema_every": 7},
                "saving": {"posthoc_every_steps": 9},
            },
            Facts(),
            "is not a multiple of training.ema_every 7",
        ),
        (
            {"training": {"ema_decay": 0.9, "ema_every": 7}},
            Facts(),
            "ema_every 7 is more than the 6 steps of the run, so that training.ema_decay",
        ),
        (
            {"training": {"posthoc_ema": True, "ema_every": 7, "max_steps": None}},
            Facts(total_steps=6),
            "ema_every 7 is more than the 6 steps of the run, so that training.posthoc_ema",
        ),
        (
            {
                "schedule": {
                    "kind": "warmup_stable_decay",
                    "warmup_steps": 4,
                    "decay_steps": "50%",
                }
            },
            Facts(),
            "warmup_steps 4 and schedule.decay_steps 50% add up to more than the 6 steps",
        ),
        (
            {"saving": {"posthoc_dtype": "fp32"}},
            Facts(),
            "no effect without training.posthoc_ema",
        ),
        (
            {"training": {"posthoc_ema": True}, "optimizer": {"kind": "adamw_schedule_free"}},
            Facts(),
            "both average the weights",
        ),
    ],
)
def test_rows_ask_what_is_known(settings, facts, words, train_config):
    plain = train_config()
    config = plain
    for section, fields in settings.items():  # not validated as a whole: only the row is tested
        current = getattr(config, section)
        changed = current.model_copy(update=fields)
        config = config.model_copy(update={section: changed})
    assert any(words in sentence for sentence in conflicts(config, facts))
    assert not list(conflicts(plain, facts))
    if facts != Facts():
        assert not list(conflicts(config, Facts()))


def test_a_rate_that_no_block_has_does_not_count(train_config):
    """All blocks have their own rates: for Prodigy the optimizer's rate is not a second one."""
    ends = dict.fromkeys(("conv_in", "time_embedding", "conv_norm_out", "conv_out"), 1.0)
    optimizer = {"kind": "prodigy", "lr": 2e-6}
    assert train_config(optimizer=optimizer, method={"block_lrs": ends | {"mid_block": 1.0}})
    with pytest.raises(ConfigError, match="one learning rate"):
        train_config(optimizer=optimizer, method={"block_lrs": {"mid_block": 1.0}})
