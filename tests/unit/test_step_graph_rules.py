"""`training.cuda_graphs`: its values, as settings had them before too, and what they refuse."""

import pytest
import torch
from graph_recording import RecordedGraphs
from torch import nn

from impasto.config.cases import Facts
from impasto.config.compatibility import conflicts
from impasto.errors import ConfigError
from impasto.training.fingerprint import differences
from impasto.training.optim.graph_recorder import NotRecordableError, _cause_of
from impasto.training.optim.graphed_update import require_capturable
from impasto.training.step_graphs import save_no_random_states

ON_GPU = Facts("cuda", 1, "", "bf16")


@pytest.mark.parametrize(
    ("given", "read"), [(True, "network"), (False, "off"), ("true", "network"), ("step", "step")]
)
def test_true_and_false_are_read_as_ever(given, read, train_config):
    config = train_config(training={"cuda_graphs": given, "compile": "full"})
    assert config.training.cuda_graphs == read


REFUSED = {
    "8 bits": ({"optimizer": {"kind": "adamw8bit"}}, "it is adamw8bit"),
    "schedule-free": ({"optimizer": {"kind": "adamw_schedule_free"}}, "set cuda_graphs to off"),
    "not fused": ({"optimizer": {"arguments": {"fused": False}}}, "with fused = false"),
    "16-bit weights": (
        {"training": {"weight_dtype": "bf16", "mixed_precision": "bf16"}},
        "weight_dtype bf16",
    ),
    "steps in the backward pass": (
        {"training": {"optimizer_in_backward": "exact"}},
        "optimizer_in_backward",
    ),
    "states in RAM": ({"training": {"offload_optimizer": True}}, "offload_optimizer"),
    "streamed weights": (
        {
            "training": {
                "stream_weights": True, "optimizer_in_backward": "exact",
                "gradient_checkpointing": True,
            }
        },
        "optimizer_in_backward",
    ),
    "fp16": ({"training": {"mixed_precision": "fp16"}}, "mixed_precision to bf16"),
    "text encoder": ({"method": {"train_text_encoder": True}}, "train_text_encoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_host_does_within_a_step_is_refused(name, train_config):
    changes, words = REFUSED[name]
    training = {**changes.get("training", {}), "cuda_graphs": "step"}
    with pytest.raises(ConfigError, match=words):
        train_config(**{**changes, "training": training})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts("cpu", 1, ""), "is for GPUs"),
        (Facts("cuda", 2, ""), "is for one process, and this run has 2"),
        (Facts("cuda", 2, "FSDP"), "is for one process"),
        (Facts("cuda", 1, "", "fp16"), "fp16"),
    ],
)
def test_what_is_known_beside_the_settings_is_refused(facts, words, train_config):
    config = train_config(training={"cuda_graphs": "step", "mixed_precision": "auto"})
    assert not list(conflicts(config, ON_GPU))
    assert words in next(conflicts(config, facts))


@pytest.mark.parametrize("compiled", ["off", "blocks", "full"])
def test_whole_steps_go_with_what_networks_alone_do_not(compiled, train_config):
    train_config(
        training={
            "cuda_graphs": "step", "compile": compiled, "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True, "mixed_precision": "bf16", "weight_copies": True,
        }
    )  # fmt: skip


@pytest.mark.parametrize("was", ["true", "false"])
def test_states_from_before_are_resumed(was):
    assert differences({"training.cuda_graphs": was, "seed": "1"}, {"seed": "1"}) == []


def test_an_optimizer_that_was_given_in_code_has_to_step_on_the_device():
    weights = [nn.Parameter(torch.ones(2))]
    require_capturable(torch.optim.AdamW(weights, fused=True))
    for other in (torch.optim.AdamW(weights), torch.optim.SGD(weights, fused=True)):
        with pytest.raises(ConfigError, match=type(other).__name__):
            require_capturable(other)


def test_dropout_does_not_go_with_blocks_that_are_computed_again():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    save_no_random_states(network)
    network[0].gradient_checkpointing = True
    with pytest.raises(ConfigError, match="dropout"):
        save_no_random_states(network)
    network[1].p = 0.0
    save_no_random_states(network)


def failing(first, then):
    """The error of a recording whose end fails as well."""
    try:
        try:
            raise first
        finally:
            raise then
    except RuntimeError as error:
        return error


def test_the_first_error_of_a_recording_is_told():
    end = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    found = _cause_of(failing(RuntimeError("not permitted when stream is capturing"), end))
    assert isinstance(found, NotRecordableError)
    assert "not permitted" in str(found)
    memory = torch.OutOfMemoryError("CUDA out of memory.")
    assert _cause_of(failing(memory, end)) is memory
    fault = ConfigError("another fault")
    assert _cause_of(failing(fault, end)) is fault


def test_the_recorder_of_the_tests_keeps_numbers_of_the_host():
    """What it is for: a number that was recorded stays, a tensor is read again."""
    place, factor = torch.ones(3), [2.0]

    def work():
        place.mul_(factor[0]).add_(place.sum())

    replay = RecordedGraphs().record(work)
    assert place.tolist() == [1.0] * 3
    factor[0] = 100.0
    replay()
    assert place.tolist() == [8.0] * 3
    with pytest.raises(NotRecordableError):
        RecordedGraphs().record(lambda: place.sum().item())
