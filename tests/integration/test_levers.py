"""What makes a run faster or smaller: that it changes nothing else, and what it refuses."""

import functools
import itertools
import json
import shutil

import pytest
import torch
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

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

TEXT_TOO = {"method": {"train_text_encoder": True}, "model": {"clip_skip": 2}}
CLIPPED = {"max_grad_norm": 0.01}
SEEN = {"split": 0.25, "timesteps": 1, "standard_error": 0, "training_images": 1}


class Notes(SilentEvents):
    """Collects what a person would read."""

    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def losses(run):
    return [record["loss"] for record in run.read_metrics() if "loss" in record]


SAME = {
    "gradients freed at once": ({"training": CLIPPED}, {"optimizer_in_backward": "exact"}),
    "gradients freed at once, 8-bit states": (
        {"training": CLIPPED, "optimizer": {"kind": "adamw8bit"}, **TEXT_TOO},
        {"optimizer_in_backward": "exact"},
    ),
    "gradients freed at once, scaled losses": (
        {"training": {**CLIPPED, "mixed_precision": "fp16"}},
        {"optimizer_in_backward": "exact"},
    ),
    "activations of the highest resolution computed again, a check beforehand": (
        {"training": {}},
        {"gradient_checkpointing": True, "checkpointed_levels": 1, "fit_check": True},
    ),
    "all activations computed again": (
        {"training": {}, **TEXT_TOO},
        {"gradient_checkpointing": True},
    ),
    "copies of weights made once": (
        {"training": {**CLIPPED, "mixed_precision": "bf16"}},
        {"weight_copies": True},
    ),
    "copies of weights made once, accumulation, checkpointing, a text encoder that learns": (
        {
            "training": {
                "mixed_precision": "bf16",
                "gradient_accumulation_steps": 2,
                "gradient_checkpointing": True,
            },
            "validation": {**SEEN, "every_steps": 2},
            **TEXT_TOO,
        },
        {"weight_copies": True},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_lever_changes_no_bit(name, train_config, tmp_path):
    settings, lever = SAME[name]
    training = {"max_steps": 3, **settings["training"]}
    plain = train(train_config(**{**settings, "training": training}))
    changed = {**settings, "training": {**training, **lever}}
    found = train(train_config(output_dir=str(tmp_path / "lever"), **changed))
    assert losses(found) == losses(plain)
    assert exported(found) == exported(plain)


def compiled_and_plain(train_config, nano_architecture, tmp_path, kind):
    """Runs on images of one size, and what a person read of the compiled one."""
    settings = {"max_steps": 3, "batch_size": 16, "gradient_checkpointing": True}
    alike = {
        "dataset": {"enable_bucket": False},
        "validation": {**SEEN, "every_steps": 1},
        "model": {"path": str(write_flat_model(nano_architecture, tmp_path / "flat"))},
    }
    plain = train(train_config(training=settings, **alike))
    notes = Notes()
    compiled = {**settings, "compile": kind}
    path = str(tmp_path / "compiled")
    return train(train_config(output_dir=path, training=compiled, **alike), notes), plain, notes


def assert_same_but_for_rounding(found, plain, notes):
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    assert sum("Compiling for" in line for line in notes.lines) == 1
    assert found.read_json("status.json")["timings_s"]["compiling"] > 0
    weights, wanted = (
        load_file(run.states / "step-00000003" / "weights.safetensors") for run in (found, plain)
    )
    assert weights.keys() == wanted.keys()
    moved = max(float((weights[name] - wanted[name]).abs().max()) for name in wanted)
    assert moved < 6e-3  # AdamW moves a weight whose gradient is near 0 by lr either way


COMPILER = [
    pytest.mark.filterwarnings("ignore"),  # PyTorch's compiler warns about itself
    pytest.mark.parametrize("kind", ["blocks", "full"]),
]


def with_marks(test):
    return functools.reduce(lambda wrapped, mark: mark(wrapped), COMPILER, test)


@with_marks
def test_a_compiled_network_is_the_same_network(
    kind, train_config, nano_architecture, tmp_path, monkeypatch
):
    """All but the last stage, which makes machine code: traced, cut apart, differentiated."""
    compile_ = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    found, plain, notes = compiled_and_plain(train_config, nano_architecture, tmp_path, kind)
    assert_same_but_for_rounding(found, plain, notes)


@pytest.mark.filterwarnings("ignore")
def test_copies_of_weights_are_compiled_with(
    train_config, nano_architecture, tmp_path, monkeypatch
):
    """Traced once, with the copies as they are; what stands elsewhere is not traced again."""
    compile_ = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    training = {
        "max_steps": 3, "batch_size": 8, "mixed_precision": "bf16", "weight_copies": True,
    }  # fmt: skip
    model = write_flat_model(nano_architecture, tmp_path / "flat")
    alike = {"dataset": {"enable_bucket": False}, "model": {"path": str(model)}}
    plain = train(train_config(training=training, **alike))
    torch._dynamo.utils.counters.clear()
    compiled = {**training, "compile": "full"}
    found = train(train_config(output_dir=str(tmp_path / "compiled"), training=compiled, **alike))
    assert losses(found) == pytest.approx(losses(plain), rel=0.01)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a short batch, too


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) on the path")
@with_marks
def test_compiled_code_computes_the_same_to_rounding(
    kind, train_config, nano_architecture, tmp_path
):
    found, plain, notes = compiled_and_plain(train_config, nano_architecture, tmp_path, kind)
    assert_same_but_for_rounding(found, plain, notes)


@pytest.mark.parametrize(("to_disk", "stored"), [(False, "fp32"), (True, "fp32"), (True, "fp16")])
def test_what_is_not_used_waits_in_a_file(
    to_disk, stored, train_config, nano_model, tmp_path, monkeypatch
):
    """VAE and text encoder: previews and the export bring them back, and are the same.

    They wait there in the type that they are stored in, and need the model's files no more.
    """
    from impasto.training import build, encoded_model, model

    prompts = {"prompts": ["a red ball", "new words"], "width": 32, "height": 32, "steps": 1}
    base, dtypes = tmp_path / "base", dict.fromkeys(ComponentKind, DTYPES[stored])
    convert_model(str(nano_model), base, "diffusers", dtypes, OpenOptions())
    settings = {
        "model": {"path": str(base)},
        "previews": {**prompts, "every_steps": 1},
        "validation": {**SEEN, "every_steps": 1},
        "training": {"cache_text_to_disk": to_disk, "max_steps": 2},
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


def test_what_the_caches_cover_is_never_given_values(train_config, tmp_path, monkeypatch):
    """A second run with the same images: neither the VAE nor the text encoder has values."""
    from impasto.models.networks import offload

    given = []

    def watched(module, *arguments):
        given.append(type(module).__name__)
        fill(module, *arguments)

    fill = offload.fill
    monkeypatch.setattr(offload, "fill", watched)
    training = {"cache_text_to_disk": True, "max_steps": 2}
    settings = {"training": training, "previews": {"prompts": []}}
    first = train(train_config(**settings))
    assert sorted(given) == ["AutoencoderKL", "CLIPTextModel"]
    given.clear()
    second = train(train_config(output_dir=str(tmp_path / "second"), **settings))
    assert not given
    assert losses(second) == losses(first)
    assert exported(second) == exported(first)


def test_another_order_in_memory_computes_the_same_to_rounding(train_config, tmp_path):
    plain = train(train_config(training={"max_steps": 3}))
    training = {"max_steps": 3, "channels_last": True}
    found = train(train_config(output_dir=str(tmp_path / "other"), training=training))
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)


FROZEN_AHEAD = {
    "the first layer": {"block_lrs": {"conv_in": 0.0}},
    "all but the way up": {"train_only": ["up_blocks.*"]},
}


@pytest.mark.parametrize("method", FROZEN_AHEAD.values(), ids=FROZEN_AHEAD)
def test_another_order_goes_with_frozen_layers_ahead_of_norms(run_file, tmp_path, method):
    """In processes of their own: what PyTorch's group norm does there ends the process."""
    found = []
    for name, other_order in (("plain", False), ("other", True)):
        training = {"max_steps": 2, "channels_last": other_order}
        file = run_file(output_dir=str(tmp_path / name), method=method, training=training)
        done = impasto("train", file)
        assert done.returncode == 0, done.stderr
        found.append(losses(RunDirectory.open(tmp_path / name)))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_last_norm_learns_as_well_as_exact(train_config, tmp_path):
    exact = train(train_config(training={**CLIPPED, "max_steps": 4}))
    fast = {**CLIPPED, "max_steps": 4, "optimizer_in_backward": "last_norm"}
    found = train(train_config(output_dir=str(tmp_path / "fast"), training=fast))
    assert losses(found)[0] == losses(exact)[0]
    assert losses(found) == pytest.approx(losses(exact), rel=0.05)
    assert losses(found) != losses(exact)


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
        "take exact",
    ),
    "nothing to limit": (
        {"training": {"optimizer_in_backward": "last_norm", "max_grad_norm": 0}},
        ConfigError,
        "costs nothing",
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


@pytest.mark.parametrize("memory", [{}, {"memory": 6}, {"memory": "auto"}])
def test_a_run_that_does_not_fit_does_not_begin(train_config, monkeypatch, memory):
    """Nor where `training.memory` allows more than there is."""
    config = train_config(training={"fit_check": True, **memory})
    monkeypatch.setattr(resolve, "free_memory", lambda _: 100 * MIB)
    with pytest.raises(OutOfMemoryError, match=r"Take a smaller dataset\.resolution") as fault:
        train(config)
    assert "workspace" in str(fault.value)
    assert not config.output_dir.exists()


def test_the_check_can_be_left_out(train_config, monkeypatch):
    monkeypatch.setattr(resolve, "free_memory", lambda _: 100 * MIB)
    run = train(train_config(training={"max_steps": 1}))
    assert run.read_json("status.json")["phase"] == "finished"


@pytest.mark.parametrize("memory", ["auto", 12])
def test_memory_chooses_settings_that_are_written_down(train_config, monkeypatch, memory):
    """For what is free, also where `training.memory` allows more, as all of a card."""
    # so that the fullest moment is a step, and not the encoding of images
    settings = {
        "training": {"memory": memory, "batch_size": 8, "max_steps": 1},
        "dataset": {"vae_batch_size": 1},
    }
    roomy, notes = train_config(**settings), Notes()
    resolve.resolve_settings(roomy, survey(roomy), notes)
    assert any("the run takes about" in line for line in notes.lines)

    monkeypatch.setattr(resolve, "free_memory", lambda _: RUNTIME["cpu"] + 6 * MIB)
    notes = Notes()
    run = train(train_config(**settings), notes)
    assert any("optimizer_in_backward" in line for line in notes.lines)
    assert any("are free: chosen" in line for line in notes.lines)
    written = run.config_file.read_text(encoding="utf-8")
    assert 'optimizer_in_backward = "last_norm"' in written
    assert "memory = " not in written


def test_what_was_asked_for_is_not_chosen_anew(train_config, monkeypatch):
    monkeypatch.setattr(resolve, "free_memory", lambda _: 100 * MIB)
    notes = Notes()
    asked = {"memory": "auto", "optimizer_in_backward": "off", "max_steps": 1}
    run = train(train_config(training=asked, optimizer={"kind": "adamw"}), notes)
    written = run.config_file.read_text(encoding="utf-8")
    assert 'optimizer_in_backward = "off"' in written
    assert 'kind = "adamw"' in written
    assert any(line.strip().startswith("That is more") for line in notes.lines)


def test_the_largest_batch_that_fits_is_found(train_config):
    config = train_config(training={"batch_size": "auto", "max_steps": 1})
    notes = Notes()
    run = train(config, notes)
    assert any(line.startswith("Batches of ") for line in notes.lines)
    records = [record for record in run.read_metrics() if "loss" in record]
    seen = [0, *(record["samples_seen"] for record in records)]
    assert max(after - before for before, after in itertools.pairwise(seen)) > 1
    assert "batch_by_pixels = true" in run.config_file.read_text(encoding="utf-8")


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
    assert f"images of {largest.bucket}," in line
    with pytest.raises(ConfigError, match="each dataset has a batch_size of its own"):
        train_config(dataset={"batch_size": 3}, training={"batch_size": "auto"})


@pytest.mark.parametrize("with_odd_one", [True, False])
def test_one_odd_image_does_not_choose_the_batch_of_all(train_config, tmp_path, with_odd_one):
    """Of small images more go into a batch, and there are enough to fill it."""
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
    assert "an epoch has not enough images to fill larger ones" in line


def test_the_plan_tells_memory_by_parts_and_time_and_what_would_make_it_fit(run_file):
    # so that the fullest moment is a step, and not the encoding of images
    settings = {"training": {"batch_size": 8, "memory": 6}, "dataset": {"vae_batch_size": 1}}
    shown = impasto("train", run_file(**settings), "--plan")
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert "Memory, at most while training on" in text
    for part in ("Weights", "Activations", "Optimizer", "Workspace", "In all"):
        assert part in text
    assert "a step" in text
    assert "training.memory allows 6.0 GiB: the run takes about" in text


def test_a_plan_for_a_larger_machine_says_what_is_free_here(train_config, monkeypatch):
    monkeypatch.setattr(resolve, "free_memory", lambda _: 1000 * MIB)
    config, notes = train_config(training={"memory": 6}), Notes()
    resolve.resolve_settings(config, survey(config), notes, check=False)
    assert "On this machine 1.0 GiB are free: a run here chooses for those." in notes.lines
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
