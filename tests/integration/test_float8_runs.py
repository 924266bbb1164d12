"""Whole runs with float8 products emulated on the CPU: losses, files, resuming, other options."""

import functools

import pytest
import torch
from accelerate.state import AcceleratorState
from flat_models import write_flat_model
from runs import exported, killed_copy
from safetensors.torch import load_file

from impasto.errors import ConfigError, RunError
from impasto.training.compute import float8
from impasto.training.events import SilentEvents
from impasto.training.trainer import resume, train

pytest.importorskip("torchao", reason="torchao, of the extra float8, is not installed")
pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate", "emulated", "encoded_once"),
    pytest.mark.filterwarnings("ignore"),  # PyTorch's compiler warns about itself
]

USUAL = {"mixed_precision": "bf16", "compile": "blocks", "max_steps": 4}
FLOAT8 = {**USUAL, "float8": True}

COMPILE = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")

APART = 0.01
"""Of a loss. A number in e4m3 is off by 2^-4 at most, by 2.6 % on average (root mean square of an
even spread over an interval); sums over 16 and more of them, and the other layers, are off by
less."""


def emulate(monkeypatch):
    """Let any device compute products from rounded numbers, in float32."""
    monkeypatch.setattr(float8, "_require_card", lambda device: None)
    product = functools.partial(float8.torchao_product, emulated=True)
    monkeypatch.setattr(float8, "torchao_product", product)


def emulated_everywhere(monkeypatch):
    """Enable float8 on any device and for any size of layers; compiled code runs uncompiled."""
    emulate(monkeypatch)
    monkeypatch.setattr(float8, "SMALL_OUTPUT", 0)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: None)


@pytest.fixture
def emulated(monkeypatch):
    emulated_everywhere(monkeypatch)


@pytest.fixture(scope="module")
def on_one_size(tmp_path_factory, nano_architecture):
    """A folder of images of one size, for a model with layers of 16 and more channels."""
    model = write_flat_model(nano_architecture, tmp_path_factory.mktemp("models") / "flat")
    return {"model": {"path": str(model)}, "dataset": {"enable_bucket": False}}


@pytest.fixture
def config(train_config, on_one_size, tmp_path):
    """Return a function that builds the settings of a run in a separate folder."""

    def build(name, training, **changes):
        folder = str(tmp_path / name)
        return train_config(output_dir=folder, training=training, **{**on_one_size, **changes})

    return build


WATCHED = {
    "validation": {"split": 0.25, "every_steps": 4, "standard_error": 0},
    "saving": {"state_every_steps": 2, "export_dtype": "fp32", "format": "diffusers"},
}


@pytest.fixture(scope="module")
def both(shared_config, on_one_size):
    """A run without float8 and one with it. Read-only by agreement."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests
    folder, runs = shared_config().output_dir, []
    with pytest.MonkeyPatch.context() as patch:
        emulated_everywhere(patch)
        for name, training in (("plain", USUAL), ("float8", FLOAT8)):
            own = str(folder.with_name(name))
            config = shared_config(output_dir=own, training=training, **on_one_size, **WATCHED)
            runs.append(train(config))
    return runs


def losses(run, key="loss"):
    return [record[key] for record in run.read_metrics() if key in record]


def weights(run, step=4):
    return load_file(run.states / f"step-{step:08d}" / "weights.safetensors")


def test_losses_are_near_those_of_bf16_and_files_have_the_same_tensors(both):
    plain, found = both
    assert losses(found) == pytest.approx(losses(plain), rel=APART)
    assert losses(found) != losses(plain)
    kept, wanted = weights(found), weights(plain)
    assert {n: (t.dtype, t.shape) for n, t in kept.items()} == {
        n: (t.dtype, t.shape) for n, t in wanted.items()
    }
    assert exported(found).keys() == exported(plain).keys()


def test_validation_is_computed_without_float8(both, config):
    """The learning rate is too small to change a weight, so the validation loss stays the same."""
    plain, _ = both
    still = {**WATCHED, "validation": {**WATCHED["validation"], "every_steps": 1}}
    found = train(config("still", {**FLOAT8, "max_steps": 1}, optimizer={"lr": 1e-30}, **still))
    base = losses(plain, "validation_loss")[0]
    assert losses(found, "validation_loss") == [base, base]
    assert losses(found)[0] != losses(plain)[0]


def test_a_resumed_run_ends_in_the_same_bits(both, tmp_path):
    _, whole = both
    ended = killed_copy(whole.path, tmp_path / "ended", after=2)
    assert exported(resume(ended, SilentEvents())) == exported(whole)


def test_a_state_without_float8_is_not_resumed_with_it(both, config, tmp_path):
    plain, _ = both
    ended = killed_copy(plain.path, tmp_path / "run", after=2)
    with pytest.raises(RunError, match=r"training\.float8 \(was false, is true\)"):
        resume(ended, SilentEvents(), changed=config("run", FLOAT8, **WATCHED))


@pytest.mark.parametrize(
    "others",
    [
        {
            "gradient_checkpointing": True, "optimizer_in_backward": "exact",
            "weight_dtype": "bf16", "rounding": "nearest",
        },
        {"gradient_accumulation_steps": 2, "ema_decay": 0.9, "channels_last": True},
    ],
    ids=lambda others: ", ".join(others),
)  # fmt: skip
def test_it_goes_with_other_levers(others, config):
    short = {"max_steps": 2, **others}
    plain = train(config("plain", {**USUAL, **short}))
    found = train(config("float8", {**FLOAT8, **short}))
    assert losses(found) == pytest.approx(losses(plain), rel=APART)
    assert losses(found) != losses(plain)


def test_copies_of_weights_give_the_same_bits(both, config):
    """Copies leave out float8 layers, which round the weights themselves."""
    _, without = both
    copied = train(config("copied", {**FLOAT8, "weight_copies": True}, **WATCHED))
    assert losses(copied) == losses(without)
    assert exported(copied) == exported(without)


def test_compiled_layers_compute_the_same(config, monkeypatch):
    """All stages but machine code generation run: tracing, partitioning, differentiation.

    One layer per block is in float8, the first of its feed-forward part.
    """
    monkeypatch.setattr(float8, "SMALL_OUTPUT", 16)
    training = {**FLOAT8, "max_steps": 2, "batch_size": 16, "weight_copies": True}
    plain = train(config("plain", training))
    monkeypatch.setattr(torch.nn.Module, "compile", COMPILE)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = train(config("compiled", {**training, "compile": "full"}))
    assert losses(found) == pytest.approx(losses(plain), rel=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_network_of_small_layers_is_refused(config, monkeypatch):
    monkeypatch.undo()
    emulate(monkeypatch)
    with pytest.raises(ConfigError, match="has no effect on this U-Net"):
        train(config("run", FLOAT8))
