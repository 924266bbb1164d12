"""accelerate's configurations for sharded models, and which settings are compatible with them."""

from types import SimpleNamespace

import pytest

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.errors import ConfigError
from impasto.training.builders.processes import require_strategy
from impasto.training.devices import build_accelerator
from impasto.training.parallel.accelerate_config import reshard_after_forward
from impasto.training.parallel.deepspeed import deepspeed_config
from impasto.training.trainer import train

FSDP = Facts("cuda", 2, "FSDP")
DEEPSPEED = Facts("cuda", 2, "DeepSpeed")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"kind": "adamw8bit"}}, "adamw8bit"),
        ({"optimizer": {"kind": "adafactor"}}, "adafactor"),
        ({"optimizer": {"kind": "prodigy", "lr": 1.0}}, "prodigy"),
        ({"optimizer": {"kind": "adamw_schedule_free"}}, "adamw_schedule_free"),
        ({"optimizer": {"kind": "Muon"}}, "Muon"),
        (
            {"training": {"weight_dtype": "bf16", "mixed_precision": "bf16"}},
            "training.weight_dtype",
        ),
        ({"training": {"optimizer_in_backward": "exact"}}, "training.optimizer_in_backward"),
        ({"training": {"offload_optimizer": True}}, "training.offload_optimizer"),
        ({"training": {"compile": "blocks"}}, "training.compile"),
        ({"training": {"channels_last": True}}, "training.channels_last"),
        ({"method": {"kind": "hypernetwork"}, "saving": {"format": "a1111"}}, "method.kind"),
    ],
)
def test_settings_that_need_a_whole_model(train_config, changes, said):
    with pytest.raises(ConfigError, match="configured for FSDP") as raised:
        require_compatible(train_config(**changes), FSDP)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"mixed_precision": "fp16"}},
        {"method": {"train_text_encoder": True, "text_encoder_from_step": 3}},
    ],
)
def test_deepspeed_goes_with_less(train_config, changes):
    require_compatible(train_config(**changes), FSDP)
    with pytest.raises(ConfigError, match="choose FSDP"):
        require_compatible(train_config(**changes), DEEPSPEED)


@pytest.mark.parametrize("kind", ["adamw", "lion", "SGD", "NAdam", "paged_adamw"])
def test_optimizers_of_single_numbers_go(train_config, kind):
    require_compatible(train_config(optimizer={"kind": kind}), DEEPSPEED)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"FSDP_VERSION": "2"}, True),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, False),
        ({"FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, False),
        ({"FSDP_SHARDING_STRATEGY": "1"}, True),
        ({"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, "fsdp_sharding_strategy is NO_SHARD"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing"),
    ],
)
def test_accelerates_settings_of_fsdp(monkeypatch, variables, expected):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, bool):
        assert reshard_after_forward() is expected
        return
    with pytest.raises(ConfigError, match=expected):
        reshard_after_forward()


def plugin_with(**asked):
    return SimpleNamespace(deepspeed_config=asked)


def test_deepspeeds_settings_are_the_runs_and_accelerates(train_config):
    asked = plugin_with(
        zero_optimization={
            "stage": 1, "offload_optimizer": {"device": "none"}, "reduce_bucket_size": 1000,
            "stage3_gather_16bit_weights_on_model_save": "auto",
        },
        gradient_clipping="auto", train_batch_size="auto", gradient_accumulation_steps=1,
        communication_data_type="fp16", fp16={"enabled": False}, bf16={"enabled": "auto"},
    )  # fmt: skip
    found = deepspeed_config(asked, max_grad_norm=0.7, accumulation=1)
    assert found["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert found["gradient_clipping"] == 0.7
    assert found["gradient_accumulation_steps"] == 1
    assert found["communication_data_type"] == "fp16"
    assert not {"fp16", "bf16", "train_batch_size"} & found.keys()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_stage is 3; expected 1 or 2"),
        ({"zero_optimization": {"stage": 0}}, "zero_stage is 0"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer"),
        ({"optimizer": {"type": "Adam"}}, r"section optimizer\. Remove it, since \[optimizer\]"),
        ({"fp16": {"enabled": True}}, "section fp16"),
        ({"gradient_clipping": 0.1}, "gradient_clipping is 0.1"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4"),
    ],
)
def test_settings_of_deepspeed_that_are_not_offered(train_config, asked, said):
    with pytest.raises(ConfigError, match=said):
        deepspeed_config(plugin_with(**asked), max_grad_norm=1.0, accumulation=1)


def test_the_processor_and_deepspeed_do_not_go_together(train_config):
    with pytest.raises(ConfigError, match="use_cpu"):
        deepspeed_config(None, max_grad_norm=1.0, accumulation=1)


@pytest.mark.parametrize(
    ("variables", "processes", "said"),
    [
        ({"USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, 2, "fsdp_offload_params keeps"),
        ({"USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, 2, "activation_checkp"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "3"}, 2, "zero_stage is 3"),
        ({"USE_DEEPSPEED": "true", "USE_CPU": "true"}, 2, "for the CPU"),
        ({"USE_MEGATRON_LM": "true"}, 1, "Megatron-LM"),
    ],
)
def test_what_processes_would_refuse_is_refused_before_any_begins(
    train_config, monkeypatch, variables, processes, said
):
    """`train --plan` gives the same message."""
    for name, value in variables.items():
        prefix = "" if name.startswith("FSDP") else "ACCELERATE_"
        monkeypatch.setenv(f"{prefix}{name}", value)
    with pytest.raises(ConfigError, match=said):
        require_strategy(train_config(), processes)


def test_deepspeed_without_a_launcher_is_refused_with_a_sentence(train_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="and this run has only one"):
        train(train_config())


def test_megatron_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(ConfigError, match="Megatron-LM"):
        build_accelerator()
