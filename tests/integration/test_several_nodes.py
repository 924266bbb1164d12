"""Two machines without a common disk, as two launchers in separate folders (gloo)."""

import json
import os
import shutil

import pytest
import tomli_w
import torch
from component_files import UNET_FILE
from flat_models import one_level_model
from object_store import put_folder
from safetensors.torch import load_file
from support.warm import running
from test_processes import WHOLE, free_port, image_losses, recorded_losses

from impasto.errors import DatasetError
from impasto.storage import objects
from impasto.training.trainer import train

nano_model = one_level_model


class Machines:
    """Two folders that stand for two machines, each with the model and the settings."""

    def __init__(self, root, model, values, **changes):
        self.folders = [root / "node-0", root / "node-1"]
        for folder in self.folders:
            folder.mkdir()
            shutil.copytree(model, folder / "model")
            own = {**values, "output_dir": "run", "model": {"path": "model"}, **changes}
            (folder / "run.toml").write_text(tomli_w.dumps(own), encoding="utf-8")

    def launch(self, *words, processes=1, program=("-m", "impasto")):
        """Run a command on both machines; return how each ended."""
        port, started = free_port(), []
        for number, folder in enumerate(self.folders):
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", **WHOLE,
                "IMPASTO_STORE_CACHE": str(folder / "copies"),
            }  # fmt: skip
            launcher = [
                "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={number}",
                f"--nproc_per_node={processes}", "--master_addr=127.0.0.1",
                f"--master_port={port}",
            ]  # fmt: skip
            command = [*launcher, *running.launched([*program, *words], environment)]
            started.append(running.start(*command, env=environment, cwd=folder))
        try:
            outputs = [process.communicate(timeout=300) for process in started]
        finally:
            for process in started:
                process.terminate()  # a launcher ends its processes before it ends itself
        return [
            (process.returncode, *texts) for process, texts in zip(started, outputs, strict=True)
        ]

    def run(self, *words, processes=1):
        for code, _, errors in self.launch(*words, processes=processes):
            assert code == 0, errors


SETTINGS = {
    "training": {"max_steps": 3, "batch_size": 4, "fit_check": False, "cache_text_to_disk": True},
    "logging": {"every_steps": 1, "image_losses": True},
    "optimizer": {"kind": "SGD", "lr": 0.1},
    "saving": {
        "export_dtype": "fp32", "format": "diffusers", "name": "model", "state_every_steps": 2,
    },
}  # fmt: skip


def on_one(train_config, run, processes, **dataset):
    """The same run, complete, in one process with accumulation."""
    training = {"gradient_accumulation_steps": processes, "max_steps": 5}
    changes = {**SETTINGS, "training": {**SETTINGS["training"], **training}, "dataset": dataset}
    train(train_config(output_dir=str(run), **changes))


def lengthen(run):
    file = run / "config.toml"
    text = file.read_text(encoding="utf-8")
    assert "max_steps = 3" in text
    file.write_text(text.replace("max_steps = 3", "max_steps = 5"), encoding="utf-8")


def assert_same(one, other):
    """Require that two runs learned the same from the same images in the same order."""
    assert len(recorded_losses(one)) == 5
    assert recorded_losses(other) == pytest.approx(recorded_losses(one), rel=1e-4)
    assert shown(one) == shown(other)
    first, second = (load_file(run / "export" / "model" / UNET_FILE) for run in (one, other))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)


def test_machines_with_a_store_in_common_are_one_run(
    train_config, run_values, tmp_path, nano_model, pictures, bucket
):
    """Images and caches are in a store; only the first machine has the run, also to resume it."""
    put_folder(pictures, bucket / "pictures")
    url = f"s3://{bucket.name}"
    dataset = {
        **run_values["dataset"], "image_dir": f"{url}/pictures", "cache_dir": f"{url}/derived",
    }  # fmt: skip
    machines = Machines(tmp_path, nano_model, run_values, **SETTINGS, dataset=dataset)
    machines.run("train", "run.toml")
    first, second = (folder / "run" for folder in machines.folders)
    assert not second.exists()
    assert_each_once(bucket)
    before = sorted(objects.find(bucket / "derived").objects)
    lengthen(first)
    machines.run("resume", "run")
    assert not second.exists()
    shards = [key for key in sorted(objects.find(bucket / "derived").objects) if "shard" in key]
    assert shards == [key for key in before if "shard" in key]
    on_one(train_config, tmp_path / "alone", 2)
    assert_same(tmp_path / "alone", first)


def shown(run):
    """Return which image was shown at which step with which timestep."""
    return [(step, image.split("/")[-1], t) for (step, image, t), _ in image_losses(run)]


def keys_in(folder):
    """Return the keys of all shards of a cache."""
    files = folder.glob("shard-*.json")
    return [k for f in files for k in json.loads(f.read_text(encoding="utf-8"))["keys"]]


def assert_each_once(bucket):
    """Require that each latent and each text is in one shard."""
    for kind in ("latents", "texts"):
        place = bucket / "derived" / kind
        keys = []
        for name in objects.find(place).objects:
            if name.startswith("shard") and name.endswith(".json"):
                (content,) = objects.read_all([place / name])
                keys += json.loads(content)["keys"]
        assert len(keys) == len(set(keys)) > 0
        assert kind == "texts" or len(keys) == 13


def test_machines_with_nothing_in_common_are_one_run(
    train_config, run_values, tmp_path, nano_model, pictures
):
    """Each machine has a copy of the images and a separate cache, and runs two processes."""
    dataset = {**run_values["dataset"], "image_dir": "pictures", "cache_dir": "derived"}
    machines = Machines(tmp_path, nano_model, run_values, **SETTINGS, dataset=dataset)
    for folder in machines.folders:
        shutil.copytree(pictures, folder / "pictures")
    machines.run("train", "run.toml", processes=2)
    first, second = machines.folders
    shards = [
        sorted(f.name for f in m.glob("derived/latents/shard*.json")) for m in (first, second)
    ]
    assert shards[0] == shards[1] != []
    lengthen(first / "run")
    (second / "run" / "received-step-00000002").mkdir(parents=True)  # by a killed process
    machines.run("resume", "run", processes=2)
    assert not (second / "run").exists()
    on_one(train_config, tmp_path / "alone", 4, image_dir=str(pictures))
    assert_same(tmp_path / "alone", first / "run")


def test_what_one_machine_lacks_both_say(run_values, tmp_path, nano_model, pictures):
    dataset = {**run_values["dataset"], "image_dir": "pictures", "cache_dir": "derived"}
    machines = Machines(tmp_path, nano_model, run_values, **SETTINGS, dataset=dataset)
    shutil.copytree(pictures, machines.folders[0] / "pictures")
    program = tmp_path / "told.py"
    program.write_text(TOLD, encoding="utf-8")
    machines.launch("train", "run.toml", program=[program])
    for folder in machines.folders:
        code, told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        assert code == DatasetError.exit_code
        assert "The image folder pictures does not exist" in told
    assert (
        "Reported by process 2 of 2, on "
        in json.loads((machines.folders[0] / "told.json").read_text(encoding="utf-8"))[1]
    )
    assert not (machines.folders[0] / "run").exists()


def test_different_images_on_two_machines_are_refused(run_values, tmp_path, nano_model, pictures):
    dataset = {**run_values["dataset"], "image_dir": "pictures", "cache_dir": "derived"}
    machines = Machines(tmp_path, nano_model, run_values, **SETTINGS, dataset=dataset)
    for folder in machines.folders:
        shutil.copytree(pictures, folder / "pictures")
    (machines.folders[1] / "pictures" / "004.png").unlink()
    for code, _, errors in machines.launch("train", "run.toml"):
        assert code != 0
        assert "do not find the same images" in " ".join(errors.split())
    assert not (machines.folders[0] / "run").exists()


TOLD = """
import contextlib, io, json, pathlib, sys
from impasto.cli.main import main

errors, code = io.StringIO(), 0
try:
    with contextlib.redirect_stderr(errors):
        sys.argv = ["impasto", *sys.argv[1:]]
        main()
except SystemExit as end:
    code = end.code
text = " ".join(errors.getvalue().split())
pathlib.Path("told.json").write_text(json.dumps([code, text]), encoding="utf-8")
sys.exit(code)
"""
