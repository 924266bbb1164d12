"""The trainer on a real GPU: every way of training, its waits, faults, memory.

`pytest -m gpu`. The same cases as on the pretended GPU; here kernels and their numbers are real.
"""

import functools
import gc
import math
import os

import pytest
import tomli_w
import torch
from conftest import impasto
from gpu_cases import CASES, FAULTS, broken_inputs, broken_step, fault_of
from ladders import BEGUN_ON_GPU, bottom_of_ladder
from runs import StopAt, exported
from safetensors.torch import load_file

from impasto.config.load import load_run_config
from impasto.datasets.build import survey
from impasto.errors import NonFiniteLossError, OutOfMemoryError, RunError
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory
from impasto.training import loop
from impasto.training.builders.overrides import Overrides
from impasto.training.compute import float8
from impasto.training.compute.float8_linear import Float8Linear, torchao_product
from impasto.training.events import SilentEvents
from impasto.training.optim.graph_recorder import CudaGraphRecorder
from impasto.training.planning.resolve import predict
from impasto.training.steps import micro_steps
from impasto.training.trainer import resume, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA card here"),
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore"),
]

LIBRARIES = {"stand_ins.EightBits": "adamw8bit"}
"""Stand-in on the pretended GPU -> the real optimizer."""


@pytest.fixture(autouse=True)
def no_graphs_of_tests_before():
    """Reset torch.compile, which counts the graphs of earlier runs of the same code."""
    torch._dynamo.reset()


def losses(run):
    return [record["loss"] for record in run.read_metrics() if "loss" in record]


def states(run):
    """Return step -> weights, from a run's states."""
    folders = sorted(run.states.glob("step-*"))
    return {int(f.name[5:]): load_file(f / "weights.safetensors") for f in folders}


def settings_of(name):
    settings, waits = CASES[name]
    settings = {section: dict(fields) for section, fields in settings.items()}
    kind = settings.get("optimizer", {}).get("kind")
    if kind in LIBRARIES:
        settings["optimizer"]["kind"] = LIBRARIES[kind]
    if "saving" in settings:
        settings["saving"] = {"format": "a1111"}
    return settings, waits


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_xformers_attends_as_pytorch_does(train_config, tmp_path, precision):
    """xformers gives the same up to the order of summation; install it with the same PyTorch."""
    pytest.importorskip("xformers.ops", reason="xformers is not installed here")
    found = {}
    for kernel in ("sdpa", "xformers"):
        training = {"attention": kernel, "mixed_precision": precision}
        run = train(train_config(output_dir=str(tmp_path / kernel), training=training))
        found[kernel] = losses(run)
    close = {"no": 1e-4, "bf16": 1e-2}[precision]
    assert found["xformers"] == pytest.approx(found["sdpa"], rel=close)


class Waits:
    """Makes PyTorch report each wait for the GPU, from a step on."""

    def __init__(self, monkeypatch, mode, first=1):
        real = loop.TrainingLoop.step

        def update(training, update, batches):
            if update.step >= first:
                torch.cuda.set_sync_debug_mode(mode)
            try:
                real(training, update, batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(loop.TrainingLoop, "step", update)


@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_and_waits_only_where_it_says(name, train_config, monkeypatch):
    settings, waits = settings_of(name)
    Waits(monkeypatch, "default" if waits else "error")
    run = train(train_config(**settings))
    found = losses(run)
    assert len(found) == 6
    assert all(map(math.isfinite, found))
    assert found[-1] < 2 * found[0]


PRECISIONS = {
    "float32": ({"tf32": False}, 2e-4),
    "TF32": ({}, 5e-3),
    "bf16": ({"mixed_precision": "bf16"}, 0.03),
    "fp16": ({"mixed_precision": "fp16"}, 0.03),
    "bf16 weights": ({"mixed_precision": "bf16", "weight_dtype": "bf16"}, 0.05),
}


def test_losses_are_those_of_the_cpu(train_config, tmp_path):
    """The same settings in float32 give the same losses in a process that sees no GPU."""
    values = train_config(output_dir=str(tmp_path / "cpu")).model_dump(
        mode="json", exclude_unset=True, exclude_none=True
    )
    file = tmp_path / "cpu.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    done = impasto("train", file, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    wanted = losses(RunDirectory(tmp_path / "cpu"))
    apart = {}
    for name, (training, _) in PRECISIONS.items():
        found = losses(train(train_config(output_dir=str(tmp_path / name), training=training)))
        apart[name] = max(abs(one / other - 1) for one, other in zip(found, wanted, strict=True))
    assert all(apart[name] <= PRECISIONS[name][1] for name in apart), apart


LEVERS = {
    "gradients freed at once": {"optimizer_in_backward": "exact"},
    "states offloaded": {"offload_optimizer": True},
    "checkpointing": {"gradient_checkpointing": True},
    "channels last": {"channels_last": True},
    "weights streamed": {
        "gradient_checkpointing": True, "optimizer_in_backward": "exact", "stream_weights": True,
    },
}  # fmt: skip
COPIES = {"mixed_precision": "bf16", "weight_copies": True}


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_changes_nothing_beyond_rounding(name, train_config, tmp_path):
    exact = {"tf32": False}
    plain = train(train_config(training=exact))
    found = train(
        train_config(output_dir=str(tmp_path / "lever"), training={**exact, **LEVERS[name]})
    )
    assert losses(found) == pytest.approx(losses(plain), rel=1e-3)


@pytest.mark.parametrize("name", BEGUN_ON_GPU)
def test_what_the_ladder_ends_with_trains(name, train_config):
    settings = bottom_of_ladder(name, lambda sections: train_config(**sections))
    assert len(losses(train(train_config(**settings)))) == 1


def test_copies_of_weights_give_the_same_bits(train_config, tmp_path):
    exact = {"deterministic": True, "mixed_precision": "bf16"}
    plain = train(train_config(training=exact))
    found = train(train_config(output_dir=str(tmp_path / "lever"), training={**exact, **COPIES}))
    assert losses(found) == losses(plain)
    assert exported(found) == exported(plain)


COMPILED = {
    "blocks": {"compile": "blocks"},
    "full": {"compile": "full", "channels_last": True},
    "copies of weights": {"compile": "full", **COPIES},
    "CUDA graphs": {"compile": "full", "cuda_graphs": "network"},
    "CUDA graphs, copies of weights": {"compile": "full", "cuda_graphs": "network", **COPIES},
    "steps as CUDA graphs": {"compile": "full", "cuda_graphs": "step", "max_steps": 6},
    "steps as CUDA graphs, copies of weights": {
        "compile": "full", "cuda_graphs": "step", "max_steps": 6, **COPIES,
    },
    "steps as CUDA graphs, blocks, checkpointing": {
        "compile": "blocks", "gradient_checkpointing": True, "cuda_graphs": "step", "max_steps": 6,
    },
    "blocks, checkpointing": {"compile": "blocks", "gradient_checkpointing": True},
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_computes_the_same(name, train_config, tmp_path):
    usual = {"max_steps": COMPILED[name].get("max_steps", 4), "mixed_precision": "bf16"}
    alike = {"dataset": {"enable_bucket": False}}
    plain = train(train_config(training=usual, **alike))
    found = train(
        train_config(
            output_dir=str(tmp_path / "lever"), training={**usual, **COMPILED[name]}, **alike
        )
    )
    assert losses(found) == pytest.approx(losses(plain), rel=0.02)


HAS_FLOAT8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
FLOAT8 = {
    "blocks": {"compile": "blocks"},
    "full": {"compile": "full", "channels_last": True},
    "CUDA graphs": {"compile": "full", "cuda_graphs": "network"},
    "copies of weights": {"compile": "full", **COPIES},
    "blocks, checkpointing": {"compile": "blocks", "gradient_checkpointing": True},
    "bf16 weights": {"compile": "full", "weight_dtype": "bf16"},
    "steps in the backward pass": {"compile": "full", "optimizer_in_backward": "exact"},
}


@pytest.fixture
def float8_config(train_config, deeper_model, monkeypatch):
    """Return the settings of a run whose layers of 16 and more channels compute in float8."""
    if not HAS_FLOAT8:
        pytest.skip("float8 products need compute capability 8.9 (Ada, Hopper, Blackwell)")
    pytest.importorskip("torchao", reason="torchao, of the extra float8, is not installed")
    monkeypatch.setattr(float8, "SMALL_OUTPUT", 0)

    def build(folder, **training):
        return train_config(
            output_dir=str(folder),
            model={"path": str(deeper_model)},
            dataset={"enable_bucket": False},
            training={"max_steps": 4, "mixed_precision": "bf16", **training},
            validation={"split": 0.25, "every_steps": 4},
            saving={"state_every_steps": 2},
        )

    return build


@pytest.mark.parametrize("name", FLOAT8)
def test_losses_in_float8_are_near_those_of_bf16(name, float8_config, tmp_path):
    """An e4m3 number is off by 2.6 % on average, a loss by less; bf16 contributes too."""
    plain = train(float8_config(tmp_path / "plain", **FLOAT8[name]))
    torch._dynamo.reset()
    found = train(float8_config(tmp_path / "float8", **FLOAT8[name], float8=True))
    assert losses(found) == pytest.approx(losses(plain), rel=0.03)
    assert losses(found) != losses(plain)
    kept, wanted = (states(run)[4] for run in (found, plain))
    assert {n: (t.dtype, t.shape) for n, t in kept.items()} == {
        n: (t.dtype, t.shape) for n, t in wanted.items()
    }


def test_a_deterministic_run_in_float8_gives_the_same_bits_when_it_is_resumed(
    float8_config, tmp_path
):
    settings = {"compile": "blocks", "deterministic": True, "float8": True}
    whole = train(float8_config(tmp_path / "whole", **settings))
    config = float8_config(tmp_path / "ended", **settings)
    torch._dynamo.reset()
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    torch._dynamo.reset()
    again = resume(config.output_dir, SilentEvents())
    assert exported(again) == exported(whole)


FLOAT8_SIZES = {
    "SD 2, 512 px, feed-forward": (4096, 320, 2560),
    "SDXL, 1024 px, feed-forward": (4096, 1280, 10240),
    "rows to fill up": (3 * 77, 1280, 1280),
}
"""Rows, inputs, outputs."""


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", FLOAT8_SIZES)
def test_real_float8_products_are_those_that_are_emulated(name, compiled, float8_config):
    """The kernels equal float32 products of the same rounded numbers, at full size.

    Outputs are rounded to bf16, by 2^-9 at most, and fast accumulation keeps 14 bits of a sum.
    """
    rows, inputs, outputs = FLOAT8_SIZES[name]
    torch.manual_seed(0)
    plain = torch.nn.Linear(inputs, outputs, device="cuda")
    values = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)
    found = []
    for emulated in (True, False):
        layer = Float8Linear(plain, torchao_product(emulated=emulated))
        if compiled and not emulated:
            layer.compile(dynamic=False)
        given = values.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            output = layer(given)
        torch.autograd.backward(output, gradient)
        found.append([output.detach(), given.grad, layer.weight.grad])
        layer.weight.grad = layer.bias.grad = None
    for wanted, real in zip(*found, strict=True):
        assert (real - wanted).float().norm() < 0.01 * wanted.float().norm()


def test_a_deterministic_run_gives_the_same_bits_when_it_is_resumed(train_config, tmp_path):
    settings = {
        "training": {"deterministic": True, "mixed_precision": "bf16"},
        "saving": {"state_every_steps": 3},
    }
    whole = train(train_config(**settings))
    config = train_config(output_dir=str(tmp_path / "ended"), **settings)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    again = resume(config.output_dir, SilentEvents())
    assert exported(again) == exported(whole)


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_finite_reaches_no_weight(name, train_config, monkeypatch):
    """The fault is in step 2, and is detected with the metrics line after step 3."""
    monkeypatch.setattr(
        micro_steps, "training_step", broken_step(fault_of(name), micro_steps.training_step)
    )
    if FAULTS[name].get("cuda_graphs") == "step":
        monkeypatch.setattr(
            micro_steps, "step_inputs", broken_inputs(fault_of(name), micro_steps.step_inputs)
        )
    config = train_config(training=FAULTS[name], logging={"every_steps": 3})
    if name == "fp16, gradient":  # caused by the loss scale, and skipped
        run = train(config)
    else:
        with pytest.raises(NonFiniteLossError, match=r"in step 2\."):
            train(config)
        run = RunDirectory(config.output_dir)
    left = states(run)
    assert all(torch.isfinite(t).all() for weights in left.values() for t in weights.values())
    if name == "fp16, gradient":
        assert len(losses(run)) == 2
    elif name in ("exact, no limit, gradient", "last norm, gradient"):  # applied in part
        assert not left
    else:
        assert list(left) == [1]


GRAPHED = {
    "float32": ({"tf32": False}, 1e-3),
    "bf16": ({"mixed_precision": "bf16"}, 0.02),
    "copies of weights": (COPIES, 0.02),
    "accumulation": ({"tf32": False, "gradient_accumulation_steps": 2}, 1e-3),
    "copies of weights, accumulation": ({**COPIES, "gradient_accumulation_steps": 2}, 0.02),
    "checkpointing": ({"tf32": False, "gradient_checkpointing": True}, 1e-3),
    "no limit": ({"tf32": False, "max_grad_norm": 0.0}, 1e-3),
    "average": ({"tf32": False, "ema_decay": 0.9}, 1e-3),
    "average on the CPU": ({"tf32": False, "ema_decay": 0.9, "ema_on_cpu": True}, 1e-3),
    "channels last": ({"tf32": False, "channels_last": True}, 1e-3),
}


@pytest.fixture
def recorded(monkeypatch):
    """Collects recordings of CUDA graphs."""
    works, real = [], CudaGraphRecorder.record

    def record(recorder, work):
        works.append(work)
        return real(recorder, work)

    monkeypatch.setattr(CudaGraphRecorder, "record", record)
    return works


@pytest.mark.parametrize("name", GRAPHED)
def test_steps_as_graphs_compute_the_same(name, train_config, tmp_path, recorded):
    """13 images in 3 buckets with a batch size of 4 leave short batches."""
    training, rel = GRAPHED[name]
    training = {"max_steps": 14, **training}
    plain = train(train_config(training=training))
    assert not recorded
    found = train(
        train_config(
            output_dir=str(tmp_path / "graphs"), training={**training, "cuda_graphs": "step"}
        )
    )
    assert len(recorded) == 3 + 1
    assert losses(found) == pytest.approx(losses(plain), rel=rel)


@pytest.mark.parametrize("method", ["full", "hypernetwork"])
def test_steps_as_graphs_are_watched_and_exported(method, train_config, recorded):
    settings = {
        "training": {"max_steps": 14, "cuda_graphs": "step", "mixed_precision": "bf16"},
        "method": {"kind": method},
        "saving": {
            "format": "a1111" if method == "hypernetwork" else "diffusers", "state_every_steps": 4,
        },
        "validation": {"split": 0.3, "every_steps": 3, "timesteps": 1},
        "previews": {"every_steps": 5, "width": 32, "height": 32, "steps": 1, "prompts": ["a"]},
    }  # fmt: skip
    run = train(train_config(**settings))
    assert recorded
    assert all(map(math.isfinite, losses(run)))
    assert exported(run)


SAME_BITS = {
    "float32": {}, "bf16": {"mixed_precision": "bf16"}, "copies of weights": COPIES,
    "checkpointing": {"mixed_precision": "bf16", "gradient_checkpointing": True},
}  # fmt: skip


@pytest.mark.parametrize("name", SAME_BITS)
def test_steps_as_graphs_give_the_same_bits(name, train_config, tmp_path, recorded):
    """One image per batch, so that nothing is padded, and a rate that is exact in float32."""
    settings = {"optimizer": {"lr": 2.0**-10}}
    training = {"deterministic": True, "batch_size": 1, "max_steps": 10, **SAME_BITS[name]}
    plain = train(train_config(training=training, **settings))
    found = train(
        train_config(
            output_dir=str(tmp_path / "graphs"),
            training={**training, "cuda_graphs": "step"},
            **settings,
        )
    )
    assert len(recorded) > 1
    assert losses(found) == losses(plain)
    assert exported(found) == exported(plain)


def test_steps_as_graphs_give_the_same_bits_when_they_are_resumed(train_config, tmp_path, recorded):
    settings = {
        "training": {"deterministic": True, "cuda_graphs": "step", "max_steps": 14, **COPIES},
        "saving": {"state_every_steps": 6},
    }
    whole = train(train_config(**settings))
    config = train_config(output_dir=str(tmp_path / "ended"), **settings)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(6))
    number = len(recorded)
    again = resume(config.output_dir, SilentEvents())
    assert len(recorded) > number
    assert exported(again) == exported(whole)


@pytest.mark.parametrize("training", [{}, COPIES], ids=["float32", "copies of weights"])
def test_steps_as_graphs_wait_for_nothing(training, train_config, monkeypatch, recorded):
    """The first steps run eagerly, and the third is recorded, which waits."""
    Waits(monkeypatch, "error", first=4)
    train(
        train_config(
            dataset={"enable_bucket": False},
            training={"max_steps": 8, "cuda_graphs": "step", "ema_decay": 0.9, **training},
            logging={"every_steps": 8},
        )
    )
    assert len(recorded) == 1 + 1


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_in_a_graph_reaches_no_weight(what, train_config, monkeypatch):
    fault = {"what": what, "at": 8}
    monkeypatch.setattr(micro_steps, "step_inputs", broken_inputs(fault, micro_steps.step_inputs))
    config = train_config(
        dataset={"enable_bucket": False},
        training={"max_steps": 12, "cuda_graphs": "step"},
        logging={"every_steps": 12},
    )
    with pytest.raises(NonFiniteLossError, match=r"in step 8\."):
        train(config)
    left = states(RunDirectory(config.output_dir))
    assert list(left) == [7]
    assert all(torch.isfinite(t).all() for t in left[7].values())


class AsksForNumbers:
    """A loss weight that the host reads."""

    def __call__(self, t, schedule, prediction):
        return torch.ones(len(t), device=t.device) * float(t.sum() > -1)


def test_what_cannot_be_recorded_is_named_and_the_gpu_goes_on(train_config, tmp_path):
    config = train_config(training={"cuda_graphs": "step"}, dataset={"enable_bucket": False})
    with pytest.raises(RunError, match=r'could not record.*Set training\.cuda_graphs to "off"'):
        train(config, SilentEvents(), overrides=Overrides(loss_weight=AsksForNumbers()))
    assert states(RunDirectory(config.output_dir))
    again = train(train_config(output_dir=str(tmp_path / "again")))
    assert all(map(math.isfinite, losses(again)))


def test_memory_that_runs_out_is_explained(train_config):
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        with pytest.raises(OutOfMemoryError, match=r"training\.batch_size = 2048"):
            train(
                train_config(
                    dataset={"num_repeats": 4096, "enable_bucket": False},
                    training={"batch_size": 4096, "max_steps": 1},
                )
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


SD1 = {
    "dataset": {
        "resolution": 512, "max_bucket_reso": 512, "enable_bucket": False, "num_repeats": 8,
    },
    "training": {"max_steps": 3, "mixed_precision": "bf16"},
    "saving": {"format": "diffusers", "export_dtype": "fp16"},
}  # fmt: skip
LEAN = {"gradient_checkpointing": True, "optimizer_in_backward": "last_norm"}
EIGHT_BITS = {"optimizer": {"kind": "adamw8bit"}}
FULL_SIZE = {
    "bf16": {},
    "bf16, checkpointing": {"training": {"gradient_checkpointing": True}},
    "fp16": {"training": {"mixed_precision": "fp16"}},
    "float32": {"training": {"mixed_precision": "no"}},
    "freed at once": {"training": {"optimizer_in_backward": "last_norm"}},
    "copies of weights": {"training": COPIES},
    "steps as CUDA graphs": {"training": {"cuda_graphs": "step"}},
    "batch of 8": {"training": {"batch_size": 8}},
    "8-bit AdamW": EIGHT_BITS,
    "8-bit AdamW, least memory": {
        "training": {**LEAN, "weight_dtype": "bf16", "offload_optimizer": True}, **EIGHT_BITS,
    },
    "memory of 4 GB": {"training": {"memory": 4}},
    "memory of 8 GB": {"training": {"memory": 8}},
}  # fmt: skip
SDXL = {
    **SD1,
    "dataset": {**SD1["dataset"], "resolution": 1024, "max_bucket_reso": 1024, "vae_batch_size": 1},
    "training": {**SD1["training"], "batch_size": 1},
}
SDXL_SIZE = {
    "Adafactor, bf16 weights": {
        "optimizer": {"kind": "adafactor", "lr": 1e-6},
        "training": {
            "weight_dtype": "bf16", "gradient_checkpointing": True, "batch_size": 2,
            "optimizer_in_backward": "exact", "cache_text_to_disk": True,
        },
    },
    "memory of 4 GB": {"training": {"memory": 4}},
    "memory of 8 GB": {"training": {"memory": 8}},
}  # fmt: skip


@functools.cache
def full_size_model(folder):
    impasto("init", folder.name, folder, "--dtype", "fp16")
    return folder


def merged(settings, changes):
    return {
        section: {**settings.get(section, {}), **changes.get(section, {})}
        for section in settings | changes
    }


@pytest.mark.parametrize(
    ("architecture", "name"),
    [*(("sd1", name) for name in FULL_SIZE), *(("sdxl", name) for name in SDXL_SIZE)],
)
def test_memory_of_a_full_size_model_is_as_predicted(
    architecture, name, train_config, tmp_path_factory, record_property
):
    """SD 1 at 512 px and SDXL at 1024; predictions leave some room, and are never 10 % too low."""
    of_one = (
        merged(SD1, FULL_SIZE[name]) if architecture == "sd1" else merged(SDXL, SDXL_SIZE[name])
    )
    model = full_size_model(tmp_path_factory.getbasetemp().parent / architecture)
    config = train_config(**{**of_one, "model": {"path": str(model)}})
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    run = train(config)
    measured = torch.cuda.max_memory_reserved() - before
    resolved = load_run_config(run.config_file)
    predicted = predict(resolved, survey(resolved, SilentProgress()))
    tensors = predicted.total - predicted.workspace
    said = f"{tensors / 2**30:.2f}, {measured / 2**30:.2f}"
    record_property("GiB predicted, measured", said)
    record_property("losses", losses(run))
    assert all(map(math.isfinite, losses(run)))
    assert 0.9 < tensors / measured < 1.3
