"""Run directories, training states and settings, read with damage; see `readers.py`."""

from __future__ import annotations

import contextlib
import json
import shutil
import tomllib

import numpy as np
import torch
from damaged_formats import damaged_tensors, picture
from mutations import damaged_bytes, damaged_json, damaged_lines, damaged_toml, json_bytes

from impasto.errors import ImpastoError

FINGERPRINT = {"base model": "a", "dataset": "b"}


class RunDirectories:
    """The small files of a run, as the report, `resume` and `sample` read them."""

    def __init__(self, folder):
        from impasto.config.load import build_run_config, dump_toml

        config = {"output_dir": "out", "model": {"path": "m"}, "dataset": {"image_dir": "p"},
                  "training": {"max_steps": 8}}  # fmt: skip
        self.settings = dump_toml(build_run_config(config, source="test"))
        self.files = {
            "status.json": {"phase": "finished", "updated_at": 1.5, "step": 8, "total_steps": 8,
                            "timings_s": {"export": 0.1}, "model": "x", "message": "m"},
            "dataset.json": {"folder": "p", "images": 3, "held_out": 1, "uncaptioned": 0,
                             "with_more_lines": 0, "enlarged": 0, "mean_lost_area": 0.1,
                             "buckets": {"64x64": 3}, "refused_latents": [], "encoded_now": 3,
                             "set_aside": [{"path": "a", "reason": "b"}], "too_long": 0,
                             "max_tokens": 75},
            "environment.json": {"python": "3", "system": "s", "machine": "m", "cpu_count": 2,
                                 "torch_threads": 1, "memory_gib": 2.0, "cuda": None,
                                 "packages": {"torch": "2"}, "gpus": [{"name": "g"}]},
            ".lock": {"owner": "1f-2-abcdef", "pid": 31, "host": "h", "since": "s", "what": "w"},
        }  # fmt: skip
        self.metrics = [
            {"step": n, "epoch": 0, "samples_seen": 4 * n, "loss": 0.5 / n, "lr": 1e-4,
             "images_per_s": 3.0} for n in range(1, 6)
        ]  # fmt: skip
        self.metrics.insert(2, {"step": 2, "validation_loss": 0.4})
        self.preview = picture(folder / "preview.png").read_bytes()

    def read(self, rng, folder):
        from impasto.config.load import load_begun_config
        from impasto.locks import lock_holder
        from impasto.report.page import write_report
        from impasto.runs import RunDirectory
        from impasto.training.monitoring.image_losses import ImageLosses

        samples = folder / "samples" / "step-00000004"
        samples.mkdir(parents=True)
        contents = {name: json_bytes(value) for name, value in self.files.items()}
        contents["metrics.jsonl"] = b"\n".join(json_bytes(row) for row in self.metrics) + b"\n"
        contents["config.toml"] = self.settings.encode()
        contents["image_losses.csv"] = b"step,image,timestep,loss\n1,a.png,5,0.1\n2,b.png,7,0.2\n"
        contents["samples/step-00000004/000.png"] = self.preview
        name = rng.choice(list(contents))
        damage = {
            "metrics.jsonl": lambda: damaged_lines(rng, self.metrics),
            "config.toml": lambda: damaged_toml(rng, tomllib.loads(self.settings)),
        }.get(name)
        if damage is None and name in self.files:
            contents[name] = damaged_json(rng, self.files[name])
        else:
            contents[name] = damage() if damage else damaged_bytes(rng, contents[name])
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        run = RunDirectory.open(folder)
        with contextlib.suppress(ImpastoError):
            if rng.random() < 0.2:  # its charts take most of the time
                write_report(run)
        for reading in (
            run.exported_model,
            lambda: run.read_json("dataset.json"),
            lambda: run.read_json("environment.json"),
            run.status,
            lambda: lock_holder(folder),
            lambda: run.truncate_metrics(3),
            lambda: ImageLosses(_OneProcess, run).rewind(1),
            lambda: load_begun_config(run.config_file),
        ):
            with contextlib.suppress(ImpastoError):
                reading()


class _OneProcess:
    is_main_process, num_processes = True, 1


class States:
    """Training states with hashes, and those of earlier versions without."""

    def __init__(self, folder):
        from impasto.checkpoints.tensors import LazyTensor
        from impasto.runs import RunDirectory
        from impasto.training.saving.state import TrainingState, save_state

        self.tensors = {"unet.a": torch.arange(12.0).reshape(3, 4), "unet.b": torch.ones(5)}
        lazy = {name: LazyTensor.of(tensor) for name, tensor in self.tensors.items()}
        scalars = {"parameters": {"unet.a:step": 3}, "groups": [{"weight_decay": 0.1}]}
        state = TrainingState(3, 30, FINGERPRINT, lazy, lazy, scalars, lazy)
        self.whole = save_state(RunDirectory(folder), state, keep=1)

    def read(self, rng, folder):
        from impasto.training.saving.state import load_state

        target = folder / self.whole.name
        shutil.copytree(self.whole, target)
        is_hashed = rng.random() < 0.7
        if not is_hashed:
            (target / "hashes.json").unlink()
            file = target / "state.json"
            file.write_bytes(file.read_bytes().replace(b'"has_hashes": true', b'"x": 1'))
        file = rng.choice(sorted(target.iterdir()))
        if rng.random() < 0.05:
            file.unlink()
        elif file.suffix == ".json":
            file.write_bytes(damaged_json(rng, json.loads(file.read_bytes())))
        else:
            file.write_bytes(damaged_tensors(rng, file.read_bytes()))
        state = load_state(target, FINGERPRINT)
        read = [{n: t.read() for n, t in tensors.items()} for tensors in state.tensors()]
        if is_hashed:
            assert (state.step, state.samples_seen) == (3, 30), "changed numbers were accepted"
            for tensors in read:
                assert tensors.keys() == self.tensors.keys(), "wrong tensor names were accepted"
                for name, tensor in tensors.items():
                    assert torch.equal(tensor, self.tensors[name]), "changed bits were accepted"


class Prompts:
    """Prompt files: text, JSON, TOML."""

    def __init__(self, folder):
        self.text = b"a cat --n dog --w 64 --h 96 --d 1 --l 7 --s 20\n# a comment\na dog --l 5\n"
        self.numbers = [b"1e9", b"-8", b"9" * 30, b"inf", b"nan", b"x", b"", b"1e400"]
        self.rows = [
            {"prompt": "a cat", "negative_prompt": "dog", "width": 64, "height": 64, "seed": 1,
             "sample_steps": 20, "scale": 7.5, "sample_sampler": "ddim"},
            "a dog --w 64",
        ]  # fmt: skip
        self.tree = {"prompt": {"width": 64, "subset": [{"prompt": "a"}, {"scale": 7.0}]}}

    def read(self, rng, folder):
        from impasto.sampling.prompt_files import read_prompt_file
        from impasto.sampling.prompts import Prompt

        ending = rng.choice([".txt", ".json", ".toml"])
        file = folder / f"p{ending}"
        if ending == ".txt":
            text = self.text.replace(rng.choice([b"64", b"96", b"7", b"20", b"1"]),
                                     rng.choice(self.numbers))  # fmt: skip
            file.write_bytes(damaged_bytes(rng, text) if rng.random() < 0.5 else text)
        elif ending == ".json":
            file.write_bytes(damaged_json(rng, self.rows))
        else:
            file.write_bytes(damaged_toml(rng, self.tree))
        for prompt in read_prompt_file(file, Prompt("", seed=1)):
            assert 0 < prompt.width * prompt.height < 10**8, "an absurd size was accepted"
            assert np.isfinite(prompt.guidance_scale), "a scale that is not a number was accepted"


class Settings:
    """The settings of a run, which must not change when written and read again."""

    def __init__(self, folder):
        self.tree = {
            "output_dir": "out", "seed": 3, "model": {"path": "m", "clip_skip": 2},
            "dataset": {"image_dir": "p", "resolution": [64, 96], "flip_aug": True},
            "optimizer": {"kind": "adamw", "lr": 1e-4, "betas": [0.9, 0.99]},
            "training": {"max_steps": 8, "batch_size": 2}, "loss": {},
            "previews": {"prompts": ["a", "b"]}, "saving": {"metadata": {"title": "t"}},
        }  # fmt: skip

    def read(self, rng, folder):
        from impasto.config.load import dump_toml, load_run_config

        file = folder / "r.toml"
        file.write_bytes(damaged_toml(rng, self.tree))
        sets = [(), ("optimizer.lr=1e-4",), ("a=1",), ("dataset.x.y=3",), ("seed=[",),
                ("training.max_steps=" + "[" * 3000,), ("seed=" + "9" * 5000,)]  # fmt: skip
        config = load_run_config(file, rng.choice(sets))
        again = folder / "again.toml"
        again.write_text(dump_toml(config), "utf-8")
        assert load_run_config(again) == config, "settings change when they are written and read"


class DatasetConfigs:
    """Dataset configurations of sd-scripts, TOML and JSON."""

    def __init__(self, folder):
        self.tree = {
            "general": {"enable_bucket": True, "shuffle_caption": True, "keep_tokens": 1},
            "datasets": [
                {"resolution": 64, "batch_size": 4, "min_bucket_reso": 32, "max_bucket_reso": 96,
                 "subsets": [{"image_dir": "p", "num_repeats": 2, "caption_prefix": "x",
                              "face_crop_aug_range": [1.0, 2.0]}]},
                {"resolution": [96, 64], "subsets": [{"image_dir": "q", "metadata_file": "m"}]},
            ],
        }  # fmt: skip

    def read(self, rng, folder):
        from impasto.config.load import dump_toml, load_dataset_config

        if rng.random() < 0.4:
            file = folder / "d.json"
            file.write_bytes(damaged_json(rng, self.tree))
        else:
            file = folder / "d.toml"
            file.write_bytes(damaged_toml(rng, self.tree))
        dump_toml(load_dataset_config(file, {}))
