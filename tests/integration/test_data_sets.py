"""Datasets as users have them: sd-scripts projects, damaged folders, several at once."""

import json
import os
import shutil
import sys
import tomllib

import numpy as np
import pytest
import tomli_w
import torch
from broken import USABLE, make_broken_images
from click.testing import CliRunner
from conftest import draw_images, impasto
from flat_models import one_level_model
from PIL import Image
from safetensors.torch import load_file

from impasto.cli.dataset_merge import merge
from impasto.config.load import build_run_config
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.text_store import TextStore
from impasto.datasets.build import survey
from impasto.errors import DatasetError
from impasto.training.steps import micro_steps
from impasto.training.trainer import resume, train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SIZES = {"000": (64, 64), "001": (96, 64), "002": (64, 96)}
BUCKETS = {
    "enable_bucket": True,
    "resolution": 80,
    "min_bucket_reso": 32,
    "max_bucket_reso": 96,
    "bucket_reso_steps": 32,
}


def toml_file(path, content):
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


def latents_of(folder, stem, width, height, flip):
    seed = [*folder.name.encode(), int(stem), flip]
    return np.random.default_rng(seed).normal(size=(4, height // 8, width // 8)).astype(np.float32)


def era_2022(folder, stem, width, height):
    np.savez(folder / f"{stem}.npz", latents_of(folder, stem, width, height, 0))
    np.savez(folder / f"{stem}_flip.npz", latents_of(folder, stem, width, height, 1))


def arrays(folder, stem, width, height, tail=""):
    return {
        f"latents{tail}": latents_of(folder, stem, width, height, 0),
        f"latents_flipped{tail}": latents_of(folder, stem, width, height, 1),
        f"original_size{tail}": np.array([width, height]),
        f"crop_ltrb{tail}": np.array([0.0, 0.0, width, height]),
    }


def era_2023(folder, stem, width, height):
    np.savez(folder / f"{stem}.npz", **arrays(folder, stem, width, height))


def era_2025(folder, stem, width, height):
    name = f"{stem}_{width:04d}x{height:04d}_sdxl.npz"  # fine_tune.py's name for SD 1's
    np.savez(folder / name, **arrays(folder, stem, width, height))


def era_2026(folder, stem, width, height):
    name = f"{stem}_{width:04d}x{height:04d}_sd.npz"
    np.savez(folder / name, **arrays(folder, stem, width, height, f"_{height // 8}x{width // 8}"))


ERAS = {  # form of latents, names of images, with or without buckets, file name
    "2022": (era_2022, lambda folder, stem: stem, True, "meta_lat.json"),
    "0.9.1": (era_2023, lambda folder, stem: str(folder / f"{stem}.png"), True, "meta_lat.json"),
    "2025": (era_2025, lambda folder, stem: f"{stem}.png", False, "meta.json"),
    "2026": (era_2026, lambda folder, stem: f"{stem}.png", False, "meta.jsonl"),
}


def make_project(tmp_path, era, count=3):
    """Write a folder of images with metadata and latents; return its dataset in sd-scripts'
    form."""
    write, key, with_buckets, name = ERAS[era]
    seed = list(ERAS).index(era)
    folder = draw_images(tmp_path / f"of-{era}", count, seed=seed, captions=False)
    entries = {}
    for number in range(count):
        stem, (width, height) = f"{number:03d}", list(SIZES.values())[number % 3]
        write(folder, stem, width, height)
        entries[key(folder, stem)] = {"caption": f"a ball {stem}", "tags": "ball, round"}
        if with_buckets:
            entries[key(folder, stem)]["train_resolution"] = [width, height]
    text = json.dumps(entries)
    if name.endswith("l"):
        text = "\n".join(json.dumps({"image_path": k, **v}) for k, v in entries.items())
    metadata = folder.parent / f"{era}-{name}"
    metadata.write_text(text, encoding="utf-8")
    subset = {"metadata_file": str(metadata), "image_dir": str(folder), "flip_aug": True}
    options = {"resolution": [64, 64]} if with_buckets else BUCKETS
    return folder, {"batch_size": 2, **options, "subsets": [subset]}


def project_file(tmp_path, *datasets):
    general = {"shuffle_caption": True, "keep_tokens": 1}
    return toml_file(tmp_path / "dataset.toml", {"general": general, "datasets": list(datasets)})


def run_of(run_values, dataset, **changes):
    values = {**run_values, "dataset": {"cache_dir": run_values["dataset"]["cache_dir"], **dataset}}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return build_run_config(values, source="test")


def test_projects_of_sd_scripts_of_all_times_train_unchanged(run_values, tmp_path):
    """Projects from all versions of sd-scripts train on their latents: nothing is encoded."""
    folders, datasets = zip(*(make_project(tmp_path, era) for era in ERAS), strict=True)
    file = project_file(tmp_path, *datasets)
    run = train(run_of(run_values, {"config": str(file)}, training={"max_steps": 4}))
    dataset = run.read_json("dataset.json")
    assert dataset["images"] == 3 * len(ERAS)
    assert dataset["encoded_now"] == 0
    assert dataset["refused_latents"] == []
    assert dataset["set_aside"] == []
    assert dataset["buckets"] == dict.fromkeys(["64x64", "64x96", "96x64"], len(ERAS))
    assert run.read_json("status.json")["phase"] == "finished"
    cache = LatentCache(tmp_path / "derived" / "latents")
    assert len(cache) == 6 * len(ERAS)
    found = []
    for index in (tmp_path / "derived" / "latents").glob("shard-*.json"):
        for key in json.loads(index.read_text(encoding="utf-8"))["keys"]:
            mean, logvar = cache.read([key])
            assert (logvar == -30).all()
            found.append(mean[0].float().numpy())
    for folder in folders:
        for stem, (width, height) in SIZES.items():
            for flip in (0, 1):
                expected = latents_of(folder, stem, width, height, flip)
                assert any(
                    mean.shape == expected.shape and np.allclose(mean, expected, atol=2e-3)
                    for mean in found
                )


def test_latents_that_do_not_fit_are_refused_and_made_anew(run_values, tmp_path):
    folder, dataset = make_project(tmp_path, "2026", count=6)
    shape, size, nan = (
        (folder / f"{stem}_{w:04d}x{h:04d}_sd.npz", arrays(folder, stem, w, h, tail))
        for stem, w, h, tail in (
            ("001", 96, 64, "_8x12"),
            ("002", 64, 96, "_12x8"),
            ("003", 64, 64, "_8x8"),
        )
    )
    shape[1]["latents_8x12"] = np.zeros((4, 8, 8), dtype=np.float32)
    size[1]["original_size_12x8"] = np.array([128, 192])
    nan[1]["latents_8x8"][0, 0, 0] = np.nan
    for file, content in (shape, size, nan):
        np.savez(file, **content)
    cut = folder / "004_0096x0064_sd.npz"
    content = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(content[:200])
    Image.new("RGB", (64, 64), (255, 0, 0)).save(folder / "005.png")  # of another size than before
    file = project_file(tmp_path, dataset)
    run = train(run_of(run_values, {"config": str(file)}, training={"max_steps": 1}))
    found = run.read_json("dataset.json")
    assert found["images"] == 6
    assert found["encoded_now"] == 5
    refused = {item["path"] for item in found["refused_latents"]}  # the last one is not opened
    assert refused == {str(path) for path in (shape[0], size[0], nan[0], cut)}


def test_exported_latents_come_back_as_they_were(run_values, tmp_path, nano_model):
    folder = draw_images(tmp_path / "set", 6)
    options = ["--resolution", "80", "--min-side", "32", "--max-side", "96", "--step", "32"]
    done = impasto("dataset", "cache", folder, nano_model, *options, "--flip", "--export-npz")
    assert done.returncode == 0, done.stderr
    assert "Encoded now       6" in done.stdout
    files = sorted(path.name for path in folder.glob("*.npz"))
    assert files[:2] == ["000_0064x0064_sd.npz", "001_0096x0064_sd.npz"]
    with np.load(folder / files[1]) as archive:
        names = {"crop_ltrb", "latents", "latents_flipped", "original_size"}
        assert set(archive.files) == names | {f"{name}_8x12" for name in names}
        for name in names:  # sd-scripts' versions expect one name or the other
            np.testing.assert_array_equal(archive[name], archive[f"{name}_8x12"])
        assert archive["latents_8x12"].shape == (4, 8, 12)
        assert archive["latents_8x12"].dtype == np.float32
        assert archive["original_size_8x12"].tolist() == [96, 64]
    dataset = {"image_dir": str(folder), "latents_from_npz": True, "flip_aug": True, **BUCKETS}
    run = train(run_of(run_values, dataset, training={"max_steps": 1}))
    assert run.read_json("dataset.json")["encoded_now"] == 0


def two_sets(tmp_path):
    draw_images(tmp_path / "a", 5)
    draw_images(tmp_path / "b", 4, seed=1, captions=False)
    metadata = {f"{n:03d}.png": {"caption": f"thing {n}"} for n in range(4)}
    (tmp_path / "b.json").write_text(json.dumps(metadata), encoding="utf-8")
    return {
        "general": BUCKETS,
        "datasets": [
            {
                "batch_size": 3,
                "subsets": [
                    {"image_dir": str(tmp_path / "a"), "num_repeats": 2},
                    {"metadata_file": str(tmp_path / "b.json"), "image_dir": str(tmp_path / "b")},
                ],
            },
            {
                "batch_size": 2,
                "resolution": 64,
                "enable_bucket": False,
                "subsets": [{"image_dir": str(tmp_path / "a"), "caption_prefix": "small"}],
            },
        ],
    }


def test_several_data_sets_train_together_and_resume_exactly(run_values, tmp_path):
    """Datasets given in a file train exactly like the same datasets given inline, also on
    resume."""
    content = two_sets(tmp_path)
    file = toml_file(tmp_path / "d.toml", content)
    native = {"bucket_selection": "native", "flip_safe": [], "latents_from_npz": False}
    changes = {"training": {"max_epochs": 2, "max_steps": None}, "saving": {"state_every_steps": 4}}
    whole = train(run_of(run_values, {"config": str(file), **native}, **changes))
    dataset = whole.read_json("dataset.json")
    assert dataset["images"] == 14
    records = [r for r in whole.read_metrics() if "loss" in r]
    assert records[-1]["samples_seen"] == 2 * (5 * 2 + 4 + 5)

    file.unlink()
    (tmp_path / "again").mkdir()
    shutil.copytree(whole.path, tmp_path / "again" / "run")
    shutil.rmtree(tmp_path / "again" / "run" / "export")
    last = sorted((tmp_path / "again" / "run" / "states").iterdir())[-1]
    shutil.rmtree(last)
    again = resume(tmp_path / "again" / "run")
    name = f"{last.name}/weights.safetensors"
    expected, found = (load_file(run.states / name) for run in (whole, again))
    assert all(torch.equal(expected[key], found[key]) for key in expected)

    values = {**run_values, "output_dir": str(tmp_path / "inline")}
    inline = train(run_of(values, {**content, **native}, training={"max_steps": 3}))
    losses = [r["loss"] for r in inline.read_metrics() if "loss" in r]
    assert losses == [r["loss"] for r in records[:3]]


AUGMENTED = {"random_crop": True, "color_aug": True, "flip_aug": True}
QUICK = {"timesteps": 1, "standard_error": 0, "training_images": 1}
HELD_OUT = {"split": 0.25, **QUICK}


def test_pictures_that_change_train_repeatably(run_values, tmp_path, pictures):
    dataset = {"image_dir": str(pictures), **BUCKETS, **AUGMENTED}
    values = {**run_values, "validation": HELD_OUT}
    losses = []
    for name in ("one", "two"):
        values["output_dir"] = str(tmp_path / name)
        run = train(run_of(values, dataset, training={"max_steps": 2}))
        losses.append([r["loss"] for r in run.read_metrics() if "loss" in r])
    assert losses[0] == losses[1]
    values["output_dir"] = str(tmp_path / "three")
    plain = train(
        run_of(values, {"image_dir": str(pictures), **BUCKETS}, training={"max_steps": 2})
    )
    assert [r["loss"] for r in plain.read_metrics() if "loss" in r] != losses[0]


def test_a_picture_that_vanishes_while_training_costs_only_itself(run_values, tmp_path, pictures):
    from impasto.training.events import SilentEvents

    class Vanishing(SilentEvents):
        def __init__(self):
            self.notes = []

        def stepped(self, step):
            if step == 1:
                for path in sorted(pictures.glob("*.png"))[:6]:
                    path.unlink()

        def note(self, message):
            self.notes.append(message)

    dataset = {"image_dir": str(pictures), **BUCKETS, **AUGMENTED}
    events = Vanishing()
    run = train(run_of(run_values, dataset, training={"max_steps": 8}), events)
    assert run.read_json("status.json")["phase"] == "finished"
    notes = [line for line in events.notes if " cannot be used any more" in line]
    lost = {line.partition(" cannot be used any more")[0] for line in notes}
    assert 0 < len(lost) == len(notes) <= 6
    assert all("and is skipped: " in line for line in notes)


def trained_weights(run):
    return load_file(sorted(run.states.iterdir())[-1] / "weights.safetensors")


def test_masks_weigh_the_loss(run_values, tmp_path, nano_model):
    """With everything masked out nothing is learned: by opacity, by files, by a crop's opacity."""
    masks = tmp_path / "masks"
    masks.mkdir()
    ways = {
        "opacity": {"alpha_mask": True},
        "files": {"mask_dir": str(masks)},
        "changing": {"alpha_mask": True, "random_crop": True},
    }
    subsets = []
    for way, options in ways.items():
        folder = tmp_path / way
        folder.mkdir()
        for number in range(4):
            seed = len(subsets) * 4 + number
            pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 4), dtype=np.uint8)
            pixels[..., 3] = 0 if way != "files" else 255
            Image.fromarray(pixels).save(folder / f"{number}.png")
            Image.new("L", (64, 64), 0).save(masks / f"{number}.png")
            (folder / f"{number}.txt").write_text("noise", encoding="utf-8")
        subsets.append({"image_dir": str(folder), **options})
    datasets = [
        {"resolution": 64, "enable_bucket": False, "batch_size": 4, "subsets": [subset]}
        for subset in subsets
    ]
    changes = {"optimizer": {"lr": 1e-3, "weight_decay": 0.0}, "training": {"max_steps": 3}}
    run = train(run_of(run_values, {"datasets": datasets}, **changes))
    records = [r for r in run.read_metrics() if "loss" in r]
    assert [r["loss"] for r in records] == [0.0, 0.0, 0.0]
    assert records[-1]["samples_seen"] == 12  # each image is shown once
    base = load_file(nano_model / "unet" / "diffusion_pytorch_model.safetensors")
    weights = trained_weights(run)
    assert all(torch.equal(weights[f"unet.{name}"], tensor) for name, tensor in base.items())


def test_captions_shown_are_those_that_training_sees(run_values, tmp_path, pictures, monkeypatch):
    """`dataset captions` prints the captions that the conditioner receives in training."""
    for number, path in enumerate(sorted(pictures.glob("*.txt"))):
        path.write_text(f"ball {number}, a, b, {{c|d}}, e", encoding="utf-8")
    options = {
        "image_dir": str(pictures), "shuffle_caption": True, "keep_tokens": 1, "num_repeats": 2,
        "enable_wildcard": True, "caption_dropout_rate": 0.2,
    }  # fmt: skip
    file = toml_file(
        tmp_path / "d.toml", {"general": BUCKETS, "datasets": [{"subsets": [options]}]}
    )
    shown = impasto("dataset", "captions", file, "--epochs", "2", "--images", "0", "--seed", "7")
    assert shown.returncode == 0, shown.stderr
    expected = [
        line.partition(": ")[2] for line in shown.stdout.splitlines() if line.startswith("  epoch")
    ]
    assert len(expected) == 2 * 2 * 13
    seen = []

    real = micro_steps.training_step

    def watching(unet, conditioner, batch, recipe):
        seen.extend(batch.captions)
        return real(unet, conditioner, batch, recipe)

    monkeypatch.setattr(micro_steps, "training_step", watching)
    training = {"max_epochs": 2, "max_steps": None, "batch_size": 13}
    train(run_of(run_values, {"config": str(file)}, training=training))
    assert sorted(text or "(empty)" for text in seen) == sorted(expected)


def test_sixty_broken_and_odd_files(tmp_path, nano_model):
    """None of the files stops the scan; each is reported by name and reason."""
    folder = tmp_path / "broken"
    expected = make_broken_images(folder)
    assert len(expected) >= 60
    (folder / "grey.txt").write_text("noise", encoding="utf-8")
    sizes = ["--resolution", "64", "--min-side", "64", "--max-side", "256"]
    keep = ["--cache-dir", tmp_path / "derived"]

    scanned = impasto("dataset", "scan", folder, "--decode", "--json", *keep)
    assert scanned.returncode == 0, scanned.stderr
    cached = impasto("dataset", "cache", folder, nano_model, *sizes, *keep, "--workers", "2")
    assert cached.returncode == 0, cached.stderr
    page = tmp_path / "report.html"
    whole = ["--whole-paths", "--out", page]
    reported = impasto("dataset", "report", folder, *sizes, *keep, *whole)
    assert reported.returncode == 0, reported.stderr

    health = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    outcomes = {
        "scan": json.loads(scanned.stdout)["set_aside"],
        "report": health["set_aside"],
    }
    for found in outcomes.values():
        reasons = {
            item["path"].replace(f"{folder}", "").lstrip("/\\"): item["reason"] for item in found
        }
        reasons = {name.replace("\\", "/"): reason for name, reason in reasons.items()}
        for name, reason in expected.items():
            if reason == USABLE:
                assert name not in reasons, reasons.get(name)
            else:
                assert reason in reasons[name]
        assert set(reasons) <= set(expected)
    usable = sum(reason == USABLE for reason in expected.values())
    assert health["images"] == usable
    assert f"Encoded now       {usable}" in cached.stdout
    assert len(health["rotated"]) == 7
    assert sorted(len(group) for group in health["same_stem"]) == [2, 2, 2, 3]
    text = page.read_text(encoding="utf-8")
    assert all(f"{name}</td>" in text for name in ("zero.bmp", "half.jpg", "bomb.png"))


def test_a_complete_store_opens_no_picture(run_values, pictures, tmp_path):
    """With a complete cache a second start checks file times, and opens no image and no caption."""
    dataset = {"image_dir": str(pictures), **BUCKETS, "flip_aug": True}
    train(run_of(run_values, dataset, training={"max_steps": 1}))
    opened = []

    def watch(event, arguments):
        if event == "open" and watching and str(arguments[0]).startswith(str(pictures)):
            opened.append(arguments[0])

    watching = [True]
    sys.addaudithook(watch)
    values = {**run_values, "output_dir": str(tmp_path / "second")}
    train(run_of(values, dataset, training={"max_steps": 4}))  # one epoch
    watching.clear()
    assert opened == []


def test_looking_after_the_cache(tmp_path, nano_model):
    folder = draw_images(tmp_path / "set", 6)
    small = ["--resolution", "80", "--min-side", "32", "--max-side", "96", "--step", "32"]
    large = ["--resolution", "160", "--min-side", "64", "--max-side", "192", "--step", "32"]
    for sizes in (small, large):
        assert impasto("dataset", "cache", folder, nano_model, *sizes).returncode == 0
    latents = folder / ".impasto" / "latents"
    assert len(LatentCache(latents)) == 12

    pruned = impasto("dataset", "cache", "prune", folder, nano_model, *small)
    assert pruned.returncode == 0, pruned.stderr
    assert "Deleted  6 entries" in pruned.stdout
    assert len(LatentCache(latents)) == 6

    assert impasto("dataset", "cache", "verify", folder).returncode == 0
    shard = min(latents.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    found = impasto("dataset", "cache", "verify", folder)
    assert found.returncode == 3
    assert f"{shard}: its bytes have changed" in found.stdout.replace("\n", "")
    assert "--remove" in found.stderr
    aside = shard.rename(tmp_path / shard.name)
    shard.symlink_to(shard)  # as on a disk that does not respond
    unread = impasto("dataset", "cache", "verify", folder, "--remove")
    assert unread.returncode == 3
    assert "1 of 3 shards" in unread.stderr
    assert "none of them was removed" in unread.stderr.replace("\n", " ")
    shard.unlink()
    aside.rename(shard)
    assert impasto("dataset", "cache", "verify", folder, "--remove").returncode == 0
    again = impasto("dataset", "cache", folder, nano_model, *small)
    assert "Encoded now       2" in again.stdout


@pytest.mark.parametrize("way", ["folder", "split"])
def test_the_cache_of_a_run_holds_what_it_validates_on(run_file, tmp_path, nano_model, way):
    """Images cropped at random have no cached latents, but held-out ones do."""
    folder = draw_images(tmp_path / "others", 3, seed=9)
    chosen = {"image_dir": str(folder)} if way == "folder" else {"split": 0.2}
    run = run_file(validation={**chosen, "copies": "bytes"})
    values = tomllib.loads(run.read_text(encoding="utf-8"))
    values["dataset"]["random_crop"] = way == "split"
    run.write_text(tomli_w.dumps(values), encoding="utf-8")
    done = impasto("dataset", "cache", run, nano_model)
    assert done.returncode == 0, done.stderr
    expected = 13 + 3 if way == "folder" else round(13 * 0.2)
    assert len(LatentCache(tmp_path / "derived" / "latents")) == expected
    pruned = impasto("dataset", "cache", "prune", run, nano_model)
    assert pruned.returncode == 0, pruned.stderr
    assert "Deleted  0 entries" in pruned.stdout


def test_pruning_drops_nothing_while_an_image_cannot_be_read(tmp_path, nano_model):
    """Pruning stops while an image is unreadable: a network disk that is away would lose
    latents."""
    folder = draw_images(tmp_path / "set", 2)
    away = draw_images(tmp_path / "away", 3)
    sizes = ["--resolution", "80", "--min-side", "32", "--max-side", "96", "--step", "32"]
    linked = folder / "linked.png"
    linked.symlink_to(max(away.glob("*.png")))
    linked.with_suffix(".txt").write_text("linked\n", encoding="utf-8")
    assert impasto("dataset", "cache", folder, nano_model, *sizes).returncode == 0
    latents = folder / ".impasto" / "latents"
    assert len(LatentCache(latents)) == 3
    away.rename(tmp_path / "elsewhere")
    pruned = impasto("dataset", "cache", "prune", folder, nano_model, *sizes)
    assert pruned.returncode == 3, pruned.stdout
    assert "1 file of the dataset cannot be read now" in " ".join(pruned.stderr.split())
    assert linked.name in pruned.stderr
    assert len(LatentCache(latents)) == 3


def test_pruning_frees_the_room_of_text_encoder_outputs_without_keys(tmp_path, nano_model):
    folder = draw_images(tmp_path / "set", 1)
    texts = folder / ".impasto" / "texts"
    TextStore(texts, "encoder").write([(1, 2)], torch.ones(1, 77, 1024))
    whole = next(texts.glob("*.safetensors"))
    orphan = whole.with_name("shard-text-0123456789abcdef.safetensors")
    shutil.copy(whole, orphan)
    os.utime(orphan, (1e9, 1e9))
    pruned = impasto("dataset", "cache", "prune", folder, nano_model)
    assert pruned.returncode == 0, pruned.stderr
    assert "0 entries, 0.3 MiB" in pruned.stdout
    assert whole.exists()
    assert not orphan.exists()


def test_verify_mends_text_encoder_outputs_too(tmp_path):
    folder = draw_images(tmp_path / "set", 1)
    store = TextStore(folder / ".impasto" / "texts", "encoder")
    store.write([(1, 2)], torch.ones(1, 77, 8))
    shard = next((folder / ".impasto" / "texts").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = impasto("dataset", "cache", "verify", folder)
    assert found.returncode == 3
    assert f"{shard}: missing, truncated" in found.stdout.replace("\n", "")
    assert impasto("dataset", "cache", "verify", folder, "--remove").returncode == 0
    assert not shard.exists()
    assert impasto("dataset", "cache", "verify", folder).returncode == 0


def test_merging_on_the_command_line(tmp_path):
    folder = draw_images(tmp_path / "set", 3)
    meta = tmp_path / "meta.json"
    first = impasto("dataset", "merge", folder, meta)
    assert first.returncode == 0, first.stderr
    entries = json.loads(meta.read_text(encoding="utf-8"))
    assert entries["001.png"] == {"tags": "a green ball"}
    assert "meta.json.bak" in impasto("dataset", "merge", folder, meta).stdout
    for path in folder.glob("*.txt"):
        path.unlink()
    back = impasto("dataset", "merge", meta, "--image-dir", folder, "--to-sidecars")
    assert back.returncode == 0, back.stderr
    assert (folder / "001.txt").read_text(encoding="utf-8") == "a green ball\n"
    for words, fault in (
        ((folder, meta, "--image-dir", folder), "--image-dir works only with --to-sidecars"),
        ((folder, meta, "--overwrite"), "--overwrite works only with --to-sidecars"),
        ((meta, folder, "--to-sidecars"), "TARGET works only without --to-sidecars"),
        ((meta, "--keys", "stem", "--to-sidecars"), "--keys works only without --to-sidecars"),
    ):
        refused = CliRunner().invoke(merge, [str(word) for word in words])
        assert refused.exit_code == 2
        assert fault in refused.output
    wrong = impasto("dataset", "merge", folder, tmp_path / "meta.csv")
    assert wrong.returncode == 2
    assert "does not end in .json or .jsonl" in wrong.stderr


def test_faults_of_a_data_set_end_with_one_sentence_each(tmp_path):
    (tmp_path / "d.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dirr='a'\n")
    (tmp_path / "m.json").write_text('{"a.png": {"caption": 3}}')
    expected = {
        "d.toml": (2, "datasets[0].subsets[0].image_dirr (the nearest is image_dir"),
        "m.json": (3, "'a.png': caption is 3; expected text"),
        "none.toml": (2, "none.toml does not exist"),
        "nowhere": (3, "nowhere does not exist"),
    }
    for name, (code, words) in expected.items():
        done = impasto("dataset", "captions", tmp_path / name)
        assert done.returncode == code, name
        assert words in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_run_on_broken_files_trains_on_the_rest(run_values, tmp_path):
    expected = make_broken_images(tmp_path / "broken")
    (tmp_path / "broken" / "grey.txt").write_text("noise", encoding="utf-8")
    dataset = {"image_dir": str(tmp_path / "broken"), **BUCKETS}
    run = train(run_of(run_values, dataset, training={"max_steps": 1}))
    found = run.read_json("dataset.json")
    assert found["images"] == sum(reason == USABLE for reason in expected.values())
    assert len(found["set_aside"]) == sum(reason != USABLE for reason in expected.values())
    assert run.read_json("status.json")["phase"] == "finished"


@pytest.mark.parametrize("fault", ["header", "pixels"])
def test_a_run_may_stop_at_the_first_fault(run_values, tmp_path, pictures, fault):
    path = pictures / "004.png"
    content = path.read_bytes()
    path.write_bytes(b"" if fault == "header" else content[: len(content) - 40])
    dataset = {"image_dir": str(pictures), **BUCKETS, "on_error": "stop"}
    with pytest.raises(DatasetError, match=r"004\.png: "):
        train(run_of(run_values, dataset))


def test_each_data_set_holds_out_its_share(run_values, tmp_path):
    content = two_sets(tmp_path)
    content["datasets"][0] |= {"validation_split": 0.4, "validation_seed": 3}
    changes = {"training": {"max_steps": 1}, "validation": {**QUICK, "copies": "bytes"}}
    run = train(run_of(run_values, content, **changes))
    assert run.read_json("dataset.json")["held_out"] == round(9 * 0.4)
    records = [r for r in run.read_metrics() if "validation_loss" in r]
    assert len(records) == 2


def test_each_data_set_has_its_validation_loss(run_values, tmp_path):
    """The total is the mean over all images; a single dataset has no separate loss."""
    content = two_sets(tmp_path)
    changes = {
        "training": {"max_steps": 1},
        "validation": {**QUICK, "split": 0.4, "copies": "bytes"},
    }
    run = train(run_of(run_values, content, **changes))
    (first, *_) = [r for r in run.read_metrics() if "validation_loss" in r]
    counts = [round(9 * 0.4), round(5 * 0.4)]
    parts = [first["validation_loss_1"], first["validation_loss_2"]]
    mean = sum(n * loss for n, loss in zip(counts, parts, strict=True)) / sum(counts)
    assert parts[0] != parts[1]
    assert first["validation_loss"] == pytest.approx(mean, rel=1e-5)


def test_a_subset_without_repeats_is_left_out(run_values, tmp_path):
    content = two_sets(tmp_path)
    content["datasets"][0]["subsets"][0]["num_repeats"] = 0
    assert len(survey(run_of(run_values, content)).plan.images) == 4 + 5


def test_nothing_is_written_beside_images_of_validation(run_values, run_file, tmp_path, nano_model):
    """Nothing is written beside validation images, whose latents are in the cache all the same."""
    held, own = draw_images(tmp_path / "held", 2, seed=5), draw_images(tmp_path / "set", 3)
    dataset = {**run_values["dataset"], "image_dir": str(own)}
    file = run_file(dataset=dataset, validation={"image_dir": str(held)})
    done = impasto("dataset", "cache", file, nano_model, "--export-npz")
    assert done.returncode == 0, done.stderr
    assert "Encoded now       5" in done.stdout
    assert (len([*own.glob("*.npz")]), [*held.glob("*.npz")]) == (3, [])
