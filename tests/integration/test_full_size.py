"""Full-size models with random weights, there and back; minutes long and 13 GB of disk.

Run with `pytest -m slow tests/integration/test_full_size.py`.
"""

import pytest
import torch

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_safetensors
from impasto.models.conversion import convert_model
from impasto.models.opening import OpenOptions, open_model

pytestmark = pytest.mark.slow


def random_file(recorded, file, metadata):
    """A file with every key of the original layout, in float32."""

    def lazy(number, shape):
        def draw():
            generator = torch.Generator().manual_seed(number)
            return torch.randn(shape, generator=generator) * 0.02

        return LazyTensor(tuple(shape), torch.float32, draw)

    tensors = {name: lazy(n, row["shape"]) for n, (name, row) in enumerate(recorded.items())}
    write_safetensors(file, tensors, metadata)
    return file


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("recorded", "metadata", "family"),
    [
        ("sd15_map.json", {}, "sd1"),
        ("sd21_map.json", {"modelspec.prediction_type": "v"}, "sd2-v"),
    ],
)
def test_there_and_back_is_bit_identical(golden, tmp_path, recorded, metadata, family):
    first = random_file(golden(recorded), tmp_path / "first.safetensors", metadata)
    assert open_model(first).identity.family.key == family
    between, second = tmp_path / "between", tmp_path / "second.safetensors"
    convert_model(str(first), between, "diffusers", {}, OpenOptions())
    convert_model(str(between), second, "safetensors", {}, OpenOptions())
    before, after = open_tensor_file(first).tensors, open_tensor_file(second).tensors
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.read(), after[name].read()), name
