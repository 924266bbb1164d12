"""Whole steps as CUDA graphs, with a recorder that needs no GPU: the same results as without."""

from types import SimpleNamespace

import pytest
import torch
from conftest import draw_half_masks
from graph_recording import RecordedGraphs
from PIL import Image
from runs import exported, killed_copy
from safetensors.torch import load_file

from impasto.config.cases import Facts
from impasto.errors import NonFiniteLossError, OutOfMemoryError, RunError
from impasto.runs import RunDirectory
from impasto.training.assembly import build, encoded_model, trained_network
from impasto.training.builders.overrides import Overrides
from impasto.training.events import SilentEvents
from impasto.training.monitoring import metrics
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.graphed_update import GraphedUpdate
from impasto.training.optim.updates import UpdateAfterBackward, UpdateInBackward
from impasto.training.planning import resolved_run
from impasto.training.steps import micro_steps, step_graphs
from impasto.training.trainer import resume, train

RATE = 2.0**-10  # exact in float32, as are quarters of it
COPIES = {"mixed_precision": "bf16", "weight_copies": True}
ONE_SIZE = {"enable_bucket": False}

pytestmark = pytest.mark.usefixtures("encoded_once")


@pytest.fixture
def recorders(monkeypatch):
    """Make runs detect a GPU, and record on the CPU; collects the recorders."""
    made = []

    def recorder(_device):
        made.append(RecordedGraphs())
        return made[-1]

    monkeypatch.setattr(step_graphs, "build_recorder", recorder)
    for module in (build, encoded_model, resolved_run):
        monkeypatch.setattr(module, "facts_of", lambda *_, **__: Facts("cuda", 1, ""))
    return made


@pytest.fixture
def settings(train_config):
    """Return a function that builds settings of a run with every batch shape more than once."""

    def build_settings(**changes):
        usual = {"optimizer": {"lr": RATE}, "training": {"max_steps": 9, "batch_size": 1}}
        merged = {
            section: {**usual.get(section, {}), **changes.get(section, {})}
            if isinstance(changes.get(section, {}), dict)
            else changes[section]
            for section in {**usual, **changes}
        }
        return train_config(**merged)

    return build_settings


@pytest.fixture
def both(settings, tmp_path, recorders):
    """The same run without graphs and with them."""

    def runs(**changes):
        plain = train(settings(**changes))
        training = {**changes.pop("training", {}), "cuda_graphs": "step"}
        changes["output_dir"] = str(tmp_path / "graphed")
        graphed = train(settings(training=training, **changes))
        (recorder,) = recorders
        assert recorder.replayed > 2, vars(recorder)
        return plain, graphed

    return runs


def losses(run):
    return [record["loss"] for record in run.read_metrics() if "loss" in record]


def numbers(run):
    """Return all metrics lines, without times and machine data."""
    varies = ("time", "images_per_s", "data_wait", "memory_mib")
    return [{k: v for k, v in line.items() if k not in varies} for line in run.read_metrics()]


def weights(run):
    """Return the tensors of all files of the exported model."""
    files = sorted(run.export.rglob("*.safetensors"))
    return {f"{f.parent.name} {k}": v for f in files for k, v in load_file(f).items()}


STEADY = {"lr": 2.0**-3, "eps": 1.0}
"""Steps proportional to the gradient: AdamW's would magnify rounding where it is near 0."""


def assert_alike(run, other):
    """Require equality up to another order of summation."""
    assert losses(run) == pytest.approx(losses(other), rel=1e-5)
    found, wanted = weights(run), weights(other)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6), name


ALIKE = {
    "monitored, no limit, amsgrad, average": {
        "optimizer": {"lr": RATE, "arguments": {"amsgrad": True}},
        "training": {"ema_decay": 0.5, "max_grad_norm": 0.0},
        "validation": {"split": 0.3, "every_steps": 3, "timesteps": 1, "standard_error": 0,
                       "training_images": 1},
        "saving": {"state_every_steps": 3, "model_every_steps": 4},
        "previews": {"every_steps": 5, "width": 32, "height": 32, "steps": 1, "prompts": ["a"]},
    },
    "bf16, checkpointing, accumulation, min-SNR, huber": {
        "loss": {"kind": "huber", "min_snr_gamma": 5.0},
        "training": {
            "mixed_precision": "bf16", "gradient_checkpointing": True,
            "gradient_accumulation_steps": 3, "max_steps": 5,
        },
        "dataset": ONE_SIZE,
    },
    "copies of weights, accumulation, checkpointing": {
        "training": {
            **COPIES, "gradient_accumulation_steps": 2, "gradient_checkpointing": True,
            "max_steps": 5,
        },
        "dataset": ONE_SIZE,
    },
    "a low limit, two rates that rise and fall, noise, images that change": {
        "method": {"block_lrs": {"up_blocks.1": RATE / 4}},
        "schedule": {"kind": "linear", "warmup_steps": 4},
        "training": {"max_steps": 8, "max_grad_norm": 0.01},
        "noise": {"offset": 0.1, "multires_iterations": 3, "input_perturbation": 0.1,
                  "input_perturbation_random_strength": True},
        "dataset": {**ONE_SIZE, "random_crop": True, "flip_aug": True},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_a_step_as_graphs_gives_the_same_bits(name, both):
    plain, graphed = both(**ALIKE[name])
    assert numbers(graphed) == numbers(plain)
    assert exported(graphed) == exported(plain)


def test_a_hypernetwork_learns_the_same(both):
    changes = {"method": {"kind": "hypernetwork"}, "saving": {"format": "a1111"}}
    changes |= {"dataset": ONE_SIZE, "training": {"max_steps": 5}}
    plain, graphed = both(**changes)
    assert numbers(graphed) == numbers(plain)


def test_short_batches_are_filled_up_and_masks_weigh(both, recorders, pictures, tmp_path):
    """13 images in 3 buckets, 4 at a time: one graph per bucket; padding changes no result."""
    masks = draw_half_masks(pictures, tmp_path / "masks")
    plain, graphed = both(
        optimizer=STEADY,
        training={"batch_size": 4, "max_steps": 12},
        dataset={"mask_dir": str(masks)},
        logging={"image_losses": True},
    )
    assert recorders[0].recorded == 3 + 1
    assert recorders[0].marked == 12  # each step is queued behind a few others
    assert_alike(graphed, plain)
    found, wanted = (
        [row.split(",") for row in run.image_losses_file.read_text("utf-8").splitlines()]
        for run in (graphed, plain)
    )
    assert [row[:-1] for row in found] == [row[:-1] for row in wanted]
    assert [float(row[-1]) for row in found[1:]] == pytest.approx(
        [float(row[-1]) for row in wanted[1:]], rel=1e-4
    )


def test_batches_are_filled_to_the_size_of_their_dataset(both, recorders, run_values, tmp_path):
    """A dataset with a batch size of 1 is not padded to the largest batch of another."""
    folders = [tmp_path / "set", tmp_path / "single"]
    for folder, count in zip(folders, (9, 4), strict=True):
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.txt").write_text("a ball", encoding="utf-8")
            Image.new("RGB", (64, 64), (number * 20, 90, 90)).save(folder / f"{number}.png")
    sets = [
        {"subsets": [{"image_dir": str(folder)}], "batch_size": size}
        for folder, size in zip(folders, (4, 1), strict=True)
    ]
    run_values["dataset"] = {"datasets": sets, "enable_bucket": False, "resolution": 64}
    plain, graphed = both(optimizer=STEADY, training={"max_steps": 12})
    assert recorders[0].recorded == 2 + 1
    assert_alike(graphed, plain)


WAITS = {
    "graphs": ({"cuda_graphs": "step"}, ["batch", "batch", "wait", "update"]),
    "plain": ({}, ["batch", "batch", "wait", "update"]),
    "in the backward pass": (
        {"optimizer_in_backward": "exact", "gradient_accumulation_steps": 1},
        ["wait", "batch", "wait", "update"],  # the second one need not wait
    ),
}


@pytest.mark.parametrize("name", WAITS)
def test_copies_for_the_average_are_made_beside_the_step(name, settings, recorders, monkeypatch):
    """Only the update of the weights waits for the copies."""
    training, wanted = WAITS[name]
    seen = []

    def noted(owner, function, what):
        real = getattr(owner, function)

        def call(*args, **kwargs):
            seen.append(what)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, function, call)

    noted(EmaWeights, "wait_for_copies", "wait")
    for update in (GraphedUpdate, UpdateAfterBackward, UpdateInBackward):
        noted(update, "apply", "update")
        noted(update, "backward", "batch")
    usual = {"ema_decay": 0.9, "ema_on_cpu": True, "max_steps": 1}
    train(settings(training={"gradient_accumulation_steps": 2, **usual, **training}))
    assert seen == wanted


@pytest.mark.parametrize(("graphs", "wanted"), [("off", 3), ("step", 7)])
def test_metrics_tell_memory_that_graphs_keep(graphs, wanted, settings, recorders, monkeypatch):
    """Memory of tensors in graphs is reserved, but not allocated between two replays."""
    training = {"cuda_graphs": graphs, "max_steps": 3}
    config = settings(training=training)
    known = {"is_available": True, "is_initialized": True}
    known |= {"max_memory_allocated": 3 << 20, "max_memory_reserved": 7 << 20}
    cuda = SimpleNamespace(**{name: lambda value=value: value for name, value in known.items()})
    monkeypatch.setattr(metrics, "torch", WithCuda(cuda))
    run = train(config)
    assert {line["memory_mib"] for line in run.read_metrics() if "loss" in line} == {wanted}


class WithCuda:
    """PyTorch with another `torch.cuda`."""

    def __init__(self, cuda):
        self.cuda = cuda

    def __getattr__(self, name):
        return getattr(torch, name)


def test_sdxl_learns_the_same(both, run_values, nano_sdxl_model):
    run_values["model"]["path"] = str(nano_sdxl_model)
    training = {"batch_size": 4, "gradient_checkpointing": True, "max_steps": 5}
    assert_alike(*both(optimizer=STEADY, training=training, dataset=ONE_SIZE))


def test_a_resumed_run_gives_the_same_bits_with_graphs_or_without(settings, tmp_path, recorders):
    """A state does not record whether its run used graphs."""
    changes = {
        "dataset": ONE_SIZE,
        "schedule": {"kind": "linear", "warmup_steps": 4},
        "saving": {"state_every_steps": 3},
    }
    runs = {}
    for graphs in ("off", "step"):
        training = {"cuda_graphs": graphs, **COPIES, "ema_decay": 0.9, "max_steps": 8}
        config = settings(output_dir=str(tmp_path / graphs), training=training, **changes)
        runs[graphs] = train(config)
    whole = runs["off"]
    assert numbers(runs["step"]) == numbers(whole)
    assert exported(runs["step"]) == exported(whole)
    for before, after in (("step", "step"), ("step", "off"), ("off", "step")):
        again = killed_copy(runs[before].path, tmp_path / f"{before}-{after}", after=3)
        file = again / "config.toml"
        text = file.read_text("utf-8")
        assert f'cuda_graphs = "{before}"' in text
        text = text.replace(f'cuda_graphs = "{before}"', f'cuda_graphs = "{after}"')
        file.write_text(text, encoding="utf-8")
        resumed = resume(again, SilentEvents())
        assert numbers(resumed) == numbers(whole)
        assert exported(resumed) == exported(whole)
    assert [recorder.replayed > 2 for recorder in recorders] == [True] * 3


@pytest.fixture
def whole(settings):
    """A run without graphs, all of whose states are kept."""
    saving = {"state_every_steps": 1, "keep_states": 9}
    training = {"max_steps": 5}
    return train(
        settings(logging={"every_steps": 5}, saving=saving, training=training, dataset=ONE_SIZE)
    )


def test_what_is_not_finite_reaches_no_weight(whole, settings, tmp_path, recorders, monkeypatch):
    """A NaN loss, and one whose gradient overflows; in a replay and in an eager step."""
    for number, (factor, at) in enumerate([(float("nan"), 5), (1e38, 5), (float("nan"), 1)]):
        config = settings(
            output_dir=str(tmp_path / f"graphed{number}"),
            training={"cuda_graphs": "step", "max_steps": 5},
            dataset=ONE_SIZE,
            logging={"every_steps": 5},
            saving={"state_every_steps": 5},
        )
        with monkeypatch.context() as patch:
            spoil_inputs(patch, factor, at)
            with pytest.raises(NonFiniteLossError, match=rf"in step {at}\."):
                train(config)
        assert recorders[number].replayed > 2 * (at > 1)
        assert_as_before(RunDirectory(config.output_dir), whole, at)
    each = [line["loss"] for line in whole.read_metrics()]
    first = next(resume(tmp_path / "graphed0").read_metrics())
    assert first["step"] == len(each) == 5
    assert first["loss"] == pytest.approx(sum(each) / 5)  # steps before the fault among them


def spoil_inputs(patch, factor, at):
    """Multiply the loss weights of one batch."""
    real, calls = micro_steps.step_inputs, [0]

    def spoilt(*args):
        inputs = real(*args)
        calls[0] += 1
        if calls[0] == at:
            inputs.weights.mul_(factor)
        return inputs

    patch.setattr(micro_steps, "step_inputs", spoilt)


def assert_as_before(run, whole, at):
    """Require the files of a run whose step `at` was not finite."""
    if at == 1:  # a state would bind the run to the failed settings
        assert run.saved_steps() == []
        return
    (state,) = run.states.glob("step-*")
    assert state.name == f"step-{at - 1:08d}"
    found = load_file(state / "weights.safetensors")
    wanted = load_file(whole.states / state.name / "weights.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class AsksForNumbers:
    """A loss weight that the host reads."""

    def __call__(self, t, schedule, prediction):
        return torch.ones(len(t)) * float(t.sum() > -1)


def test_what_cannot_be_recorded_is_named(settings, recorders):
    config = settings(training={"cuda_graphs": "step"})
    with pytest.raises(RunError, match=r'could not.*waits.*Set training\.cuda_graphs to "off"'):
        train(config, SilentEvents(), overrides=Overrides(loss_weight=AsksForNumbers()))
    run = RunDirectory(config.output_dir)
    assert len(list(run.states.glob("step-*"))) == 1


def test_memory_that_runs_out_while_recording_is_explained(settings, recorders, monkeypatch):
    """The update is recorded in step 2, before which the state is saved."""

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(RecordedGraphs, "record", out_of_memory)
    config = settings(training={"cuda_graphs": "step"})
    with pytest.raises(OutOfMemoryError, match=r'cuda_graphs = "off".*activations'):
        train(config)
    assert [f.name for f in RunDirectory(config.output_dir).states.iterdir()] == ["step-00000001"]


class Notes(SilentEvents):
    def __init__(self):
        self.told = []

    def note(self, message):
        self.told.append(message)


def test_more_shapes_than_graphs_are_told_and_trained_on(
    settings, tmp_path, recorders, monkeypatch
):
    monkeypatch.setattr(step_graphs, "MOST_GRAPHS", 1)
    plain, notes = train(settings(training={"max_steps": 7})), Notes()
    training = {"max_steps": 7, "cuda_graphs": "step"}
    config = settings(output_dir=str(tmp_path / "graphed"), training=training)
    graphed = train(config, notes)
    assert recorders[0].recorded == 1 + 1
    assert sum("more than 1 batch shapes" in note for note in notes.told) == 1
    assert exported(graphed) == exported(plain)


def test_what_is_compiled_has_no_graphs_of_its_own(settings, recorders, monkeypatch):
    """Inductor would record its kernels too, inside the recording of the step."""
    asked = []
    monkeypatch.setattr(
        trained_network, "compile_unet", lambda *_, **options: asked.append(options)
    )
    train(settings(training={"compile": "full", "cuda_graphs": "step", "max_steps": 1}))
    assert [options["cuda_graphs"] for options in asked] == [False]
