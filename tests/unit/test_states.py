"""Training states: the values that were written are read, or the damage is reported."""

import json
from dataclasses import replace

import pytest
import torch

from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import RunError
from impasto.runs import RunDirectory
from impasto.training.saving.state import DamagedStateError, TrainingState, load_state, save_state

FINGERPRINT = {"dataset": "a"}
FILES = ("weights.safetensors", "optimizer.safetensors", "ema.safetensors")


@pytest.fixture
def folder(tmp_path):
    tensors = {
        "unet.w": LazyTensor.of(torch.arange(6, dtype=torch.float32).reshape(2, 3)),
        "unet.n": LazyTensor.of(torch.tensor(0.1)),
    }
    remembered = {**tensors, "unet.n": LazyTensor.of(torch.tensor(float("nan")))}
    scalars = {"parameters": {"unet.w:step": 4}, "groups": [{"weight_decay": 0.1}]}
    state = TrainingState(4, 16, FINGERPRINT, tensors, remembered, scalars, tensors)
    return save_state(RunDirectory(tmp_path), state, keep=1)


def put(file, place, byte):
    """Change a byte in place: rewriting a file would wait for the disk."""
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(bytes([byte]))


@pytest.mark.parametrize("name", FILES)
def test_every_changed_bit_is_seen(folder, name):
    """Every changed bit of the values, and of the header's meaningful part, is detected."""
    file = folder / name
    whole = file.read_bytes()
    for place in range(len(whole)):
        put(file, place, whole[place] ^ 1 << place % 8)
        try:
            state = load_state(folder, FINGERPRINT)
        except DamagedStateError:
            pass
        else:  # a space at the end of the header
            assert torch.equal(state.weights["unet.w"].read(), torch.arange(6.0).reshape(2, 3))
            assert whole[place : place + 1] == b" "
        put(file, place, whole[place])


@pytest.mark.parametrize("name", ["state.json", "hashes.json"])
def test_every_changed_bit_of_its_description_is_seen(folder, name):
    file = folder / name
    whole = file.read_bytes()
    for place in range(len(whole)):
        put(file, place, whole[place] ^ 1 << place % 7)
        try:
            state = load_state(folder, FINGERPRINT)
        except RunError:  # damaged, or of an unknown version
            pass
        else:
            assert name == "hashes.json", f"byte {place} of {name} was changed and accepted"
            assert (state.step, state.samples_seen) == (4, 16)
        put(file, place, whole[place])


def test_a_tensor_of_the_same_bytes_and_another_shape_is_seen(folder):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes().replace(b"[2,3]", b"[3,2]"))
    with pytest.raises(DamagedStateError, match=r"unet\.w in weights\.safetensors does not match"):
        load_state(folder, FINGERPRINT)


@pytest.mark.parametrize("name", [*FILES, "state.json", "hashes.json"])
def test_a_missing_file_is_seen(folder, name):
    (folder / name).unlink()
    with pytest.raises(DamagedStateError, match="damaged"):
        load_state(folder, FINGERPRINT)


def test_a_state_of_an_earlier_version_is_read(folder):
    """A state of an earlier version contains no hashes, nor any mention of them."""
    (folder / "hashes.json").unlink()
    file = folder / "state.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    del described["has_hashes"]
    file.write_text(json.dumps(described), encoding="utf-8")
    state = load_state(folder, FINGERPRINT)
    assert not state.is_hashed
    assert state.step == 4


def test_another_run_is_no_damage(folder):
    with pytest.raises(RunError, match="cannot be resumed exactly") as caught:
        load_state(folder, {"dataset": "b"})
    assert not isinstance(caught.value, DamagedStateError)


def test_hashes_that_have_lost_a_file_are_no_hashes(folder):
    file = folder / "hashes.json"
    hashes = json.loads(file.read_text(encoding="utf-8"))
    del hashes["ema.safetensors"]
    file.write_text(json.dumps(hashes), encoding="utf-8")
    with pytest.raises(DamagedStateError, match=r"ema\.safetensors has missing or unexpected"):
        load_state(folder, FINGERPRINT)


@pytest.mark.parametrize("part", ["weights", "ema"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_hashed", [True, False])
def test_weights_that_are_not_finite_are_damage(folder, part, value, is_hashed):
    """An earlier version could write such a state, and resume from it."""
    whole = load_state(folder, FINGERPRINT)
    bad = {**whole.weights, "unet.n": LazyTensor.of(torch.tensor(value))}
    state = replace(whole, **{part: bad})
    target = save_state(RunDirectory(folder.parent.parent / "other"), state, keep=1)
    if not is_hashed:
        (target / "hashes.json").unlink()
        description = json.loads((target / "state.json").read_text(encoding="utf-8"))
        del description["has_hashes"]
        (target / "state.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(
        DamagedStateError, match=rf"unet\.n in {part}\.safetensors holds NaN or inf"
    ):
        load_state(target, FINGERPRINT)
