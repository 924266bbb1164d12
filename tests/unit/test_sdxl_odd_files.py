"""SDXL files from merging programs give the plain file, or are refused with a reason.

If this failed, a merge would be trained with the weights of another tensor, or without some.
"""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from two_encoders import write_model

from impasto.checkpoints.keymap import ema_name, layout_of
from impasto.checkpoints.kinds import BASE_MODEL, kind_of
from impasto.checkpoints.ldm import split_ldm
from impasto.checkpoints.reading import TensorFile
from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import ModelError
from impasto.models.families import SDXL, file_layouts
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.conversion import convert_model

FIRST = "conditioner.embedders.0.transformer.text_model."
SECOND = "conditioner.embedders.1.model."
IDS = f"{FIRST}embeddings.position_ids"
OLD_IDS = f"{SECOND}transformer.text_model.embeddings.position_ids"
PROJECTION = f"{SECOND}text_projection"


def ids(dtype=torch.int64):
    return torch.arange(77)[None].to(dtype)


def twice(names):
    """Write A1111's form: the conditioner is `cond_stage_model` too, and has buffers."""
    start = "conditioner."
    again = {n: n.replace(start, "cond_stage_model.", 1) for n in names if n.startswith(start)}
    return {again[name]: names[name] for name in again}


def renamed(tensors, first, second):
    starts = {"conditioner.embedders.0.": first, SECOND: second}

    def of(name):
        start = next((start for start in starts if name.startswith(start)), None)
        return name if start is None else starts[start] + name.removeprefix(start)

    return {of(name): tensor for name, tensor in tensors.items()}


def upright(tensors):
    others = {name: tensor for name, tensor in tensors.items() if name != PROJECTION}
    projection = tensors[PROJECTION]
    if isinstance(projection, LazyTensor):
        return {**others, f"{PROJECTION}.weight": projection}
    return {**others, f"{PROJECTION}.weight": projection.T.contiguous()}


def averaged(tensors):
    own = [name for name in tensors if name.startswith("model.diffusion_model.")]
    return {
        **tensors, **{ema_name(name): tensors[name] + 1 for name in own},
        "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3),
    }  # fmt: skip


READ = {
    "saved by ComfyUI": lambda t: {**t, IDS: ids()},
    "by an old ComfyUI": lambda t: {**t, IDS: ids(), OLD_IDS: ids(torch.float16)},
    "position ids in fp16": lambda t: {**t, IDS: ids(torch.float16)},
    "position ids in bf16": lambda t: {**t, IDS: ids(torch.bfloat16)},
    "position ids in int32": lambda t: {**t, IDS: ids(torch.int32)},
    "position ids that were averaged": lambda t: {**t, IDS: ids(torch.float32) * 0.999},
    "A1111's memory": lambda t: {**t, **twice(t), "denoiser.sigmas": torch.ones(1000)},
    "averaged weights beside": averaged,
    "a mask of attention": lambda t: {**t, f"{SECOND}attn_mask": torch.zeros(77, 77)},
    "no logit_scale": lambda t: {n: x for n, x in t.items() if not n.endswith("logit_scale")},
    "a projection that stands upright": upright,
    "both projections": lambda t: {**t, f"{PROJECTION}.weight": t[PROJECTION]},
    "a projection and a scale of the first": lambda t: {
        **t, f"{FIRST[:-11]}text_projection.weight": torch.ones(2, 2),
        "conditioner.embedders.0.logit_scale": torch.tensor(4.6),
    },
    "ComfyUI's own names beside": lambda t: {
        **t, **renamed({n: x for n, x in t.items() if "embedders." in n}, "clip_l.", "clip_g.")
    },
    "names without text_model": lambda t: {n.replace(FIRST, FIRST[:-11]): t[n] for n in t},
}  # fmt: skip
REFUSED = {
    "clip_l and clip_g": lambda t: renamed(t, "clip_l.", "clip_g."),
    "ComfyUI's own names": lambda t: renamed(
        t, "cond_stage_model.clip_l.", "cond_stage_model.clip_g."
    ),
    "A1111's wrappers": lambda t: renamed(
        t, "conditioner.embedders.0.wrapped.", "conditioner.embedders.1.wrapped.model."
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, nano_architecture):
    """A file of a small SDXL, its tensors and its metadata."""
    folder = write_model(nano_architecture, tmp_path_factory.mktemp("odd") / "model", SDXL)
    file = folder.with_suffix(".safetensors")
    convert_model(str(folder), file, "safetensors", {}, OpenOptions())
    with safe_open(file, "pt") as opened:
        return file, load_file(file), opened.metadata()


@pytest.fixture(scope="module")
def parts(plain):
    """The tensors of its networks, read once."""
    contents = open_model(plain[0])
    return {
        part: {name: tensor.read() for name, tensor in tensors.items()}
        for part, tensors in contents.components.items()
    }


@pytest.fixture
def odd(plain, tmp_path):
    """Return a function that writes the file with other tensors."""

    def write(change):
        _, tensors, texts = plain
        file = tmp_path / "odd.safetensors"
        save_file({name: t.clone() for name, t in change(dict(tensors)).items()}, file, texts)
        return file

    return write


def assert_same_parts(found, expected, change=lambda tensor: tensor):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].read(), change(tensor)), name


@pytest.mark.parametrize("form", READ)
def test_it_is_the_plain_file(odd, plain, parts, tmp_path, form):
    """Both the opened networks and the file converted from them are equal."""
    file, target = odd(READ[form]), tmp_path / "again.safetensors"
    convert_model(str(file), target, "safetensors", {}, OpenOptions())
    again = open_model(target)
    for part, tensors in parts.items():
        assert_same_parts(again.components[part], tensors)
    written = load_file(target)
    assert set(plain[1]) <= set(written) <= {*plain[1], IDS, f"{SECOND}attn_mask"}
    if IDS in written:
        assert not written[IDS].dtype.is_floating_point
        assert written[IDS].tolist() == ids().tolist()


def test_averaged_weights_are_read_when_asked_for(odd, parts):
    found = open_model(odd(averaged), OpenOptions(weights="ema"))
    assert_same_parts(found.components["unet"], parts["unet"], lambda tensor: tensor + 1)
    assert_same_parts(found.components["text_encoder_2"], parts["text_encoder_2"])


@pytest.mark.parametrize("form", REFUSED)
def test_what_no_program_reads_is_refused_by_name(odd, form):
    with pytest.raises(ModelError, match=r"text encoders are called clip_l and clip_g or") as told:
        open_model(odd(REFUSED[form]))
    assert "the node Save Checkpoint" in str(told.value)
    assert "belongs to" not in str(told.value)


@pytest.fixture(scope="module")
def full_size(golden):
    """The 2,514 recorded names and shapes, and the target of each tensor."""
    tensors = {n: Shape.of(tuple(row["shape"])) for n, row in golden("sdxl_map.json").items()}
    return tensors, split_ldm(tensors, SDXL.layout).components


@pytest.mark.parametrize("form", [*READ, *REFUSED])
def test_it_is_told_so_at_full_size(full_size, form):
    """Each tensor has the same target as before."""
    tensors, expected = full_size
    changed = {
        name: tensor if isinstance(tensor, LazyTensor) else LazyTensor.of(tensor)
        for name, tensor in {**READ, **REFUSED}[form](tensors).items()
    }
    kind = kind_of(TensorFile("x", "safetensors", changed), file_layouts())
    assert (kind is BASE_MODEL) == (form in READ)
    if kind is not BASE_MODEL:
        return
    layout = layout_of(changed, file_layouts())
    assert layout == SDXL.layout
    found = split_ldm(changed, layout)
    for part, own in expected.items():
        assert {n: found.components[part][n].shape for n in own} == {
            n: t.shape for n, t in own.items()
        }
        assert len(found.components[part].keys() - own.keys()) <= (part == "text_encoder_2")


class Shape(LazyTensor):
    """A tensor without values; adding to it keeps the shape."""

    @classmethod
    def of(cls, shape):
        return cls(shape, torch.float16, lambda: None)

    def __add__(self, _):
        return self
