"""The processes of a run share the encoding of its images, and end together (gloo)."""

import json
import signal

import torch
from flat_models import one_level_model
from PIL import Image
from test_processes import launch, launch_without_launcher, recorded_losses

from impasto.data.caching.latent_cache import LatentCache
from impasto.errors import DatasetError, RunError

nano_model = one_level_model

WRITING = """
import json, os, pathlib, sys
from impasto.cli.main import main
from impasto.data.sharding import shards

write, folder = shards.Shards.write, pathlib.Path(sys.argv.pop())

def noted(self, label, keys, tensors):
    write(self, label, keys, tensors)
    with (folder / f"rank-{os.environ['RANK']}").open("a", encoding="utf-8") as file:
        file.writelines(key + os.linesep for key in keys)

shards.Shards.write = noted
main(["train", sys.argv[1]])
"""


def keys_of(folder):
    """Return the keys in a cache."""
    files = folder.glob("shard-*.json")
    return [k for f in files for k in json.loads(f.read_text(encoding="utf-8"))["keys"]]


def test_each_process_encodes_its_share(run_file, tmp_path, pictures):
    """With mirrored images and captions, no entry is written twice, and bits equal one process's.

    An image that one process cannot decode is counted once.
    """
    damaged = damage_last(pictures)
    program = tmp_path / "writing.py"
    program.write_text(WRITING, encoding="utf-8")
    caches = {name: tmp_path / f"derived of {name}" for name in ("one", "two")}
    for number, (name, cache) in enumerate(caches.items(), 1):
        file = run_file(
            output_dir=str(tmp_path / name),
            dataset={"cache_dir": str(cache), "flip_aug": True, "vae_batch_size": 2},
            training={
                "max_steps": 2, "cache_text_to_disk": True,
                "gradient_accumulation_steps": 3 - number,
            },
        )  # fmt: skip
        (tmp_path / f"written by {name}").mkdir()
        done = launch([program, file, tmp_path / f"written by {name}"], number)
        assert done.returncode == 0, done.stderr
        told = json.loads((tmp_path / name / "dataset.json").read_text(encoding="utf-8"))
        assert [item["path"].split("/")[-1] for item in told["set_aside"]] == [damaged]
        assert told["images"] == 12
        assert told["encoded_now"] == 12
    written = [
        (tmp_path / "written by two" / f"rank-{rank}").read_text(encoding="utf-8").split()
        for rank in (0, 1)
    ]
    assert min(map(len, written)) >= 8  # of 24 latents
    assert len({*written[0], *written[1]}) == len(written[0]) + len(written[1])
    named = [sorted(keys_of(cache / "latents")) for cache in caches.values()]
    assert named[0] == named[1]
    one, two = (LatentCache(cache / "latents") for cache in caches.values())
    for key in named[0]:
        assert all(map(torch.equal, one.read([key]), two.read([key])))
    assert sorted(keys_of(caches["one"] / "texts")) == sorted(keys_of(caches["two"] / "texts"))
    losses = [recorded_losses(tmp_path / name) for name in caches]
    assert len(losses[0]) == 2
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-4, atol=0)


def damage_last(pictures):
    """Truncate an image of the last bucket, which the last process encodes."""

    def aspect(path):
        with Image.open(path) as image:
            return image.width / image.height

    last = max(sorted(pictures.glob("*.png")), key=aspect)
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return last.name


def test_an_image_that_cannot_be_used_ends_all_processes(run_file, tmp_path, pictures):
    name = damage_last(pictures)
    run = tmp_path / "run"
    file = run_file(output_dir=str(run), dataset={"on_error": "stop"})
    ended = launch_without_launcher(["-m", "impasto", "train", file], 2)
    for code, errors in ended:
        assert code == DatasetError.exit_code, errors
        assert name in errors
        assert "set dataset.on_error to skip" in " ".join(errors.split())
    assert "Reported by process 2 of 2, on " in " ".join(ended[0][1].split())
    assert not run.exists()


KILLED = """
import os, signal, sys
from impasto.cli.main import main
from impasto.data.sharding import shards

def dying_write(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1":
    shards.Shards.write = dying_write
main(["train", sys.argv[1]])
"""


def test_a_process_that_is_killed_while_it_encodes_ends_the_first(run_file, tmp_path):
    program = tmp_path / "killed.py"
    program.write_text(KILLED, encoding="utf-8")
    run = tmp_path / "run"
    file = run_file(output_dir=str(run), training={"max_steps": 1})
    (code, errors), (killed, _) = launch_without_launcher([program, file], 2)
    assert killed == -signal.SIGKILL
    assert code == RunError.exit_code, errors
    assert "Another process of this run has ended" in " ".join(errors.split())
    again = launch(["-m", "impasto", "train", file], 2)
    assert again.returncode == 0, again.stderr
