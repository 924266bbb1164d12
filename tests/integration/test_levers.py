"""Options that make a run faster or smaller: their results are the same, and their refusals."""

import functools
import itertools
import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import impasto
from flat_models import write_flat_model
from PIL import Image
from runs import exported
from safetensors.torch import load_file

from impasto.checkpoints.keymap import ComponentKind
from impasto.data.loading.dataset import sampler_groups
from impasto.datasets.batching import batch_size_of
from impasto.datasets.build import survey
from impasto.errors import ConfigError, MissingDependencyError, OutOfMemoryError
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.conversion import convert_model
from impasto.models.writing.saving import DTYPES
from impasto.runs import RunDirectory
from impasto.training.events import SilentEvents
from impasto.training.planning import resolve
from impasto.training.planning.overhead import RUNTIME
from impasto.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "encoded_once")

TEXT_TOO = {"method": {"train_text_encoder": True}, "model": {"clip_skip": 2}}
CLIPPED = {"max_grad_norm": 0.01}
SEEN = {"split": 0.25, "timesteps": 1, "standard_error": 0, "training_images": 1}


class Notes(SilentEvents):
    """Collects messages for the user."""

    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def losses(run):
    return [record["loss"] for record in run.read_metrics() if "loss" in record]


SAME = {
    "gradients freed at once, 8-bit states, all computed again, a text encoder that learns": (
        {"training": CLIPPED, "optimizer": {"kind": "adamw8bit"}, **TEXT_TOO},
        {"optimizer_in_backward": "exact", "gradient_checkpointing": True},
    ),
    "gradients freed at once, scaled losses, the highest resolution computed again": (
        {"training": {**CLIPPED, "mixed_precision": "fp16"}},
        {"optimizer_in_backward": "exact", "gradient_checkpointing": True,
         "checkpointed_levels": 1},
    ),
    "copies of weights made once, accumulation, checkpointing, a text encoder that learns": (
        {
            "training": {
                **CLIPPED,
                "mixed_precision": "bf16",
                "gradient_accumulation_steps": 2,
                "gradient_checkpointing": True,
            },
            "validation": {**SEEN, "every_steps": 2},
            **TEXT_TOO,
        },
        {"weight_copies": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_lever_changes_no_bit(name, train_config, tmp_path):
    settings, lever = SAME[name]
    training = {"max_steps": 2, **settings["training"]}
    plain = train(train_config(**{**settings, "training": training}))
    changed = {**settings, "training": {**training, **lever}}
    found = train(train_config(output_dir=str(tmp_path / "lever"), **changed))
    assert losses(found) == losses(plain)
    assert exported(found) == exported(plain)


@pytest.fixture(scope="module")
def flat(tmp_path_factory, nano_architecture):
    """A model of one level. Read-only by agreement."""
    return write_flat_model(nano_architecture, tmp_path_factory.mktemp("models") / "flat")


@pytest.fixture
def of_one_level(run_values, flat):
    """Use a model with fewer operations, since each run is predicted by a step without values."""
    run_values["model"]["path"] = str(flat)


fewer_operations = pytest.mark.usefixtures("of_one_level")


TO_COMPILE = {"max_steps": 3, "batch_size": 16, "gradient_checkpointing": True}


def alike(flat):
    """Settings of runs on images of one size, in one batch."""
    return {
        "dataset": {"enable_bucket": False},
        "validation": {**SEEN, "every_steps": 1},
        "model": {"path": str(flat)},
    }


def compiled(train_config, flat, folder, **training):
    """A run that compiles, and its messages."""
    config = train_config(output_dir=folder, training={**TO_COMPILE, **training}, **alike(flat))
    notes = Notes()
    return train(config, notes), notes


def assert_same_but_for_rounding(found, notes, plain):
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    assert sum("Compiling for" in line for line in notes.lines) == 1
    assert found.read_json("status.json")["timings_s"]["compiling"] > 0
    weights, wanted = (
        load_file(run.states / "step-00000003" / "weights.safetensors") for run in (found, plain)
    )
    assert weights.keys() == wanted.keys()
    moved = max(float((weights[name] - wanted[name]).abs().max()) for name in wanted)
    assert moved < 6e-3  # AdamW moves a weight whose gradient is near 0 by lr either way


COPIES = {"mixed_precision": "bf16", "weight_copies": True}


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
@pytest.mark.parametrize(
    ("kind", "others"),
    [("blocks", {}), ("full", COPIES)],
    ids=["blocks", "full, copies of weights"],
)
def test_a_compiled_network_is_the_same_network(
    kind, others, train_config, flat, tmp_path, monkeypatch
):
    """All stages but machine code generation run: tracing, partitioning, differentiation.

    The whole network is traced once, with the copies, whose addresses do not change in a step.
    """
    compile_ = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    plain = train(train_config(training={**TO_COMPILE, **others}, **alike(flat)))
    torch._dynamo.utils.counters.clear()
    found = compiled(train_config, flat, str(tmp_path / "compiled"), compile=kind, **others)
    assert_same_but_for_rounding(*found, plain)
    if kind == "full":
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
@pytest.mark.parametrize("kind", ["blocks", "full"])
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) on the PATH")
def test_compiled_code_computes_the_same_to_rounding(kind, train_config, flat, tmp_path):
    plain = train(train_config(training=TO_COMPILE, **alike(flat)))
    found = compiled(train_config, flat, str(tmp_path / "compiled"), compile=kind)
    assert_same_but_for_rounding(*found, plain)


@pytest.mark.parametrize(("to_disk", "stored"), [(False, "fp32"), (True, "fp16")])
def test_what_is_not_used_waits_in_a_file(
    to_disk, stored, train_config, nano_model, tmp_path, monkeypatch
):
    """VAE and text encoder wait in a file; previews and the export load them unchanged.

    They are stored there in their original dtype, and no longer need the model's files.
    """
    from impasto.training.assembly import build, encoded_model
    from impasto.training.builders import model

    prompts = {"prompts": ["a red ball", "new words"], "width": 32, "height": 32, "steps": 1}
    base, dtypes = tmp_path / "base", dict.fromkeys(ComponentKind, DTYPES[stored])
    convert_model(str(nano_model), base, "diffusers", dtypes, OpenOptions())
    settings = {
        "model": {"path": str(base)},
        "previews": {**prompts, "every_steps": 1},
        "validation": {**SEEN, "every_steps": 1},
        "training": {"cache_text_to_disk": to_disk, "max_steps": 1},
    }
    with monkeypatch.context() as patch:
        patch.setattr(encoded_model, "_waiting_components", lambda *_, **_others: [])
        for module in (build, encoded_model):
            patch.setattr(module, "with_offloaded", lambda model, *_: model)
        plain = train(train_config(**settings))
    in_files, types = [], set()

    def watched(tensors, file):
        in_files.append(file)
        waiting = keep_in_file(tensors, file)
        types.update(t.dtype for t in waiting.values() if t.dtype.is_floating_point)
        return waiting

    def without_files(*arguments):
        shutil.rmtree(base, ignore_errors=True)
        return prepare_data(*arguments)

    keep_in_file, prepare_data = model.keep_in_file, encoded_model.prepare_data
    with monkeypatch.context() as patch:
        patch.setattr(model, "keep_in_file", watched)
        patch.setattr(encoded_model, "prepare_data", without_files)
        found = train(train_config(output_dir=str(tmp_path / "waiting"), **settings))
    assert len(in_files) == 1 + to_disk
    assert types == {DTYPES[stored]}
    assert not any(file.exists() for file in in_files)
    assert losses(found) == losses(plain)
    assert exported(found) == exported(plain)
    for drawn in sorted(plain.samples.rglob("*.png")):
        other = found.samples / drawn.relative_to(plain.samples)
        assert other.read_bytes() == drawn.read_bytes()


@fewer_operations
def test_what_the_caches_cover_is_never_given_values(train_config, tmp_path, monkeypatch):
    """With complete caches of the same images, neither VAE nor text encoder is given values.

    The check beforehand gives them none either, and changes nothing that is learned.
    """
    from impasto.models.networks import offload

    given = []

    def watched(module, *arguments):
        given.append(type(module).__name__)
        fill(module, *arguments)

    fill = offload.fill
    monkeypatch.setattr(offload, "fill", watched)
    training = {"cache_text_to_disk": True, "max_steps": 1}
    derived = {"cache_dir": str(tmp_path / "derived")}
    settings = {"training": training, "previews": {"prompts": []}, "dataset": derived}
    first = train(train_config(**settings))
    assert sorted(given) == ["AutoencoderKL", "CLIPTextModel"]
    given.clear()
    training["fit_check"] = True
    second = train(train_config(output_dir=str(tmp_path / "second"), **settings))
    assert not given
    assert losses(second) == losses(first)
    assert exported(second) == exported(first)


@pytest.fixture(scope="module")
def plain(shared_config):
    """Three steps without any of these options. Read-only by agreement."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests
    return train(shared_config(training={**CLIPPED, "max_steps": 3}))


def with_lever(train_config, **training):
    return train(train_config(training={**CLIPPED, "max_steps": 3, **training}))


def test_another_order_in_memory_computes_the_same_to_rounding(train_config, plain):
    found = with_lever(train_config, channels_last=True)
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)


def test_last_norm_learns_as_well_as_exact(train_config, plain):
    found = with_lever(train_config, optimizer_in_backward="last_norm")
    assert losses(found)[0] == losses(plain)[0]
    assert losses(found) == pytest.approx(losses(plain), rel=0.05)
    assert losses(found) != losses(plain)


FROZEN_AHEAD = {
    "the first layer": {"block_lrs": {"conv_in": 0.0}},
    "all but the way up": {"train_only": ["up_blocks.*"]},
}


@pytest.mark.parametrize("method", FROZEN_AHEAD.values(), ids=FROZEN_AHEAD)
def test_another_order_goes_with_frozen_layers_ahead_of_norms(
    run_file, train_config, tmp_path, method
):
    """Run in a separate process: PyTorch's group norm with this layout crashes the process."""
    other = tmp_path / "other"
    training = {"max_steps": 2, "channels_last": True}
    done = impasto("train", run_file(output_dir=str(other), method=method, training=training))
    assert done.returncode == 0, done.stderr
    plain = train(train_config(method=method, training={"max_steps": 2}))
    assert losses(RunDirectory.open(other)) == pytest.approx(losses(plain), rel=1e-5)


REFUSED = {
    "xformers": ({"training": {"attention": "xformers"}}, ConfigError, "GPUs only"),
    "offload": ({"training": {"offload_optimizer": True}}, ConfigError, "change nothing"),
    "graphs": (
        {"training": {"compile": "blocks", "cuda_graphs": True}}, ConfigError, "this run has none"
    ),
    "accumulation": (
        {"training": {"optimizer_in_backward": "exact", "gradient_accumulation_steps": 2}},
        ConfigError,
        "adds them up",
    ),
    "overflow": (
        {"training": {"optimizer_in_backward": "last_norm", "mixed_precision": "fp16"}},
        ConfigError,
        "set it to exact",
    ),
    "nothing to limit": (
        {"training": {"optimizer_in_backward": "last_norm", "max_grad_norm": 0}},
        ConfigError,
        "which is as fast then",
    ),
    "levels": ({"training": {"checkpointed_levels": 2}}, ConfigError, "no effect without"),
    "graphs alone": ({"training": {"cuda_graphs": True}}, ConfigError, "without compile"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_levers_that_do_nothing_here_are_refused(name, train_config):
    settings, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        train(train_config(**settings))


def test_compiling_without_a_compiler_is_refused(train_config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingDependencyError, match=r"C\+\+ compiler"):
        train(train_config(training={"compile": "full"}))


MIB = 1 << 20


@fewer_operations
@pytest.mark.parametrize("memory", [{}, {"memory": 6}, {"memory": "auto"}])
def test_a_run_that_does_not_fit_does_not_begin(train_config, monkeypatch, memory):
    """A run that does not fit is refused, even if `training.memory` allows more than there is."""
    config = train_config(training={"fit_check": True, **memory})
    monkeypatch.setattr(resolve, "free_memory", lambda _: 100 * MIB)
    with pytest.raises(OutOfMemoryError, match=r"Use a smaller dataset\.resolution") as fault:
        train(config)
    assert "workspace" in str(fault.value)
    assert not config.output_dir.exists()


def test_the_check_can_be_left_out(train_config, monkeypatch):
    monkeypatch.setattr(resolve, "free_memory", lambda _: 100 * MIB)
    run = train(train_config(training={"max_steps": 1}))
    assert run.read_json("status.json")["phase"] == "finished"


@fewer_operations
def test_memory_chooses_settings_that_are_written_down(train_config, monkeypatch):
    """Settings are chosen for the free memory, even if `training.memory` allows the whole card."""

    def settings(memory):
        # so that the peak is in a step, not in the encoding of images
        training = {"memory": memory, "batch_size": 8, "max_steps": 1}
        return train_config(training=training, dataset={"vae_batch_size": 1})

    for memory in ("auto", 12):
        roomy, notes = settings(memory), Notes()
        resolve.resolve_settings(roomy, survey(roomy), notes)
        assert any("the run will take about" in line for line in notes.lines)

    monkeypatch.setattr(resolve, "free_memory", lambda _: RUNTIME["cpu"] + 6 * MIB)
    notes = Notes()
    run = train(settings("auto"), notes)
    assert any("optimizer_in_backward" in line for line in notes.lines)
    assert any("are free: the settings below were chosen" in line for line in notes.lines)
    written = run.config_file.read_text(encoding="utf-8")
    assert 'optimizer_in_backward = "last_norm"' in written
    assert "memory = " not in written
    allowed, notes = settings(12), Notes()
    chosen = resolve.resolve_settings(allowed, survey(allowed), notes)
    assert any("are free: the settings below were chosen" in line for line in notes.lines)
    assert chosen.training.optimizer_in_backward == "last_norm"
    assert chosen.training.memory is None


@fewer_operations
def test_what_was_asked_for_is_not_chosen_anew(train_config, monkeypatch):
    monkeypatch.setattr(resolve, "free_memory", lambda _: 100 * MIB)
    notes = Notes()
    asked = {"memory": "auto", "optimizer_in_backward": "off", "max_steps": 1}
    run = train(train_config(training=asked, optimizer={"kind": "adamw"}), notes)
    written = run.config_file.read_text(encoding="utf-8")
    assert 'optimizer_in_backward = "off"' in written
    assert 'kind = "adamw"' in written
    assert any(line.strip().startswith("That is more than the limit") for line in notes.lines)


@fewer_operations
def test_the_largest_batch_that_fits_is_found(train_config):
    config = train_config(training={"batch_size": "auto", "max_steps": 1})
    notes = Notes()
    run = train(config, notes)
    assert any(line.startswith("Batches of ") for line in notes.lines)
    records = [record for record in run.read_metrics() if "loss" in record]
    seen = [0, *(record["samples_seen"] for record in records)]
    assert max(after - before for before, after in itertools.pairwise(seen)) > 1
    assert "batch_by_pixels = true" in run.config_file.read_text(encoding="utf-8")


@fewer_operations
def test_the_largest_batch_is_that_of_datasets_without_one_of_their_own(train_config, pictures):
    subsets = [{"image_dir": str(pictures)}]
    both = [{"batch_size": 3, "resolution": 96, "subsets": subsets}, {"subsets": subsets}]
    config = train_config(
        dataset={"image_dir": None, "datasets": both},
        training={"batch_size": "auto", "max_steps": 1},
    )
    notes, found = Notes(), survey(config)
    resolved = resolve.resolve_settings(config, found, notes)
    assert resolved.training.batch_size > 1
    assert resolved.batch_sizes[0] == 3
    counts = sampler_groups(found.plan.images).counts()
    largest = max((g for g in counts if g.dataset == 1), key=lambda g: g.bucket.area)
    (line,) = (line for line in notes.lines if line.startswith("Batches of "))
    assert f"images of {largest.bucket} (more of smaller images)" in line
    with pytest.raises(ConfigError, match="each dataset sets its own batch_size"):
        train_config(dataset={"batch_size": 3}, training={"batch_size": "auto"})


@fewer_operations
@pytest.mark.parametrize("with_odd_one", [True, False])
def test_one_odd_image_does_not_choose_the_batch_of_all(train_config, tmp_path, with_odd_one):
    """Small images get larger batches, and there are enough of them to fill these."""
    for n in range(24):
        Image.new("RGB", (96, 64), (n * 9, 5, 5)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("words", encoding="utf-8")
    if with_odd_one:
        Image.new("RGB", (96, 96), (1, 2, 3)).save(tmp_path / "odd.png")
        (tmp_path / "odd.txt").write_text("words", encoding="utf-8")
    config = train_config(
        dataset={"image_dir": str(tmp_path), "resolution": 96, "bucket_selection": "native"},
        training={"batch_size": "auto", "max_steps": 1},
        validation={"split": 0.0},
    )
    notes, found = Notes(), survey(config)
    resolved = resolve.resolve_settings(config, found, notes)
    small = min(sampler_groups(found.plan.images).counts(), key=lambda g: g.bucket.area)
    assert batch_size_of(resolved, small) >= 24
    (line,) = (line for line in notes.lines if line.startswith("Batches of "))
    assert "an epoch has too few images to fill larger ones" in line


@fewer_operations
def test_the_plan_tells_memory_by_parts_and_time_and_what_would_make_it_fit(run_file):
    # so that the peak is in a step, not in the encoding of images
    settings = {"training": {"batch_size": 8, "memory": 6}, "dataset": {"vae_batch_size": 1}}
    shown = impasto("train", run_file(**settings), "--plan")
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert "Memory, at most while training on" in text
    for part in ("Weights", "Activations", "Optimizer", "Workspace", "Total"):
        assert part in text
    assert "a step" in text
    assert "training.memory allows 6.0 GiB: the run will take about" in text


@fewer_operations
def test_a_plan_for_a_larger_machine_says_what_is_free_here(train_config, monkeypatch):
    monkeypatch.setattr(resolve, "free_memory", lambda _: 1000 * MIB)
    config, notes = train_config(training={"memory": 6}), Notes()
    resolve.resolve_settings(config, survey(config), notes, check=False)
    assert (
        "On this machine 1.0 GiB are free: a run here would choose settings for that."
        in notes.lines
    )
    assert any(line.startswith("training.memory allows 6.0 GiB") for line in notes.lines)


def test_batches_by_pixels_hold_more_small_pictures(train_config):
    config = train_config(training={"batch_by_pixels": True, "batch_size": 2, "max_epochs": 1,
                                    "max_steps": None})  # fmt: skip
    run = train(config)
    seen = [r["samples_seen"] for r in run.read_metrics() if "loss" in r]
    assert seen[-1] == 13
    plan = json.loads((run.path / "dataset.json").read_text(encoding="utf-8"))
    fewest = sum(-(-n // max(1, 2 * 6400 // area(b))) for b, n in plan["buckets"].items())
    assert len(seen) == fewest


def area(bucket):
    width, height = map(int, bucket.split("x"))
    return width * height
