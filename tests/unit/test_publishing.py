"""The published part of a run's settings: no local path, and no prompt unless requested."""

import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from impasto.config.run import RunConfig
from impasto.publishing import PATH_KEYS, path_basename, redact_settings, redact_text
from impasto.report.shortening import shortened

SETTINGS = {
    "output_dir": "/home/ana/runs/ink",
    "model": {"path": "C:\\models\\base.safetensors", "clip_skip": 2},
    "dataset": {"datasets": [{"subsets": [{"image_dir": "../ana/pics", "num_repeats": 2}]}]},
    "previews": {
        "prompts": ["ana at home"], "negative_prompt": "bob", "prompt_file": "~/p.txt",
        "hypernetworks": ["/home/ana/h.pt:0.8"],
    },
    "optimizer": {"arguments": {"config": "/etc/x.json", "note": "\\\\server\\share\\y"}},
    "saving": {"metadata": {"description": "see /my/own/words"}},
}  # fmt: skip


def test_by_default_nothing_of_the_machine_and_no_prompt():
    assert redact_settings(SETTINGS, ()) == {
        "output_dir": "ink",
        "model": {"path": "base.safetensors", "clip_skip": 2},
        "dataset": {"datasets": [{"subsets": [{"image_dir": "pics", "num_repeats": 2}]}]},
        "previews": {"prompt_file": "p.txt", "hypernetworks": ["h.pt:0.8"]},
        "optimizer": {"arguments": {"config": "x.json", "note": "y"}},
        "saving": {"metadata": {"description": "see /my/own/words"}},
    }


def test_what_is_asked_for_is_told():
    assert redact_settings(SETTINGS, ("paths", "prompts")) == SETTINGS
    with_prompts = redact_settings(SETTINGS, ("prompts",))["previews"]
    assert with_prompts["prompts"] == ["ana at home"]
    assert with_prompts["prompt_file"] == "p.txt"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /home/ana/a.png: denied", "cannot read a.png: denied"),
        ("C:\\Users\\ana\\b.txt is gone", "b.txt is gone"),
        ("~/pics/c.png, 3 of 4", "c.png, 3 of 4"),
        ("0.5 images/s and 1/2", "0.5 images/s and 1/2"),
        ("see sub/d.png", "see sub/d.png"),
    ],
)
def test_sentences_lose_absolute_paths(text, told):
    assert redact_text(text, ()) == told
    assert redact_text(text, ("paths",)) == text


def test_the_last_part_of_a_path_of_any_system():
    for path in ("/a/b", "/a/b/", "C:\\a\\b", "\\\\server\\a\\b", "b"):
        assert path_basename(path) == "b"


def path_fields(section):
    """Return the names of all settings that contain a path."""
    for name, field in section.model_fields.items():
        for kind in inner(field.annotation):
            if kind is Path:
                yield name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from path_fields(kind)


def inner(annotation):
    arguments = typing.get_args(annotation)
    if not arguments or isinstance(annotation, types.GenericAlias | type):
        yield annotation
    for argument in arguments:
        yield from inner(argument)


def test_every_setting_that_is_a_path_is_known_as_one():
    found = set(path_fields(RunConfig))
    assert {"output_dir", "image_dir", "model_dir"} <= found
    assert found <= PATH_KEYS


def test_a_report_names_files_below_the_folder_it_is_of(tmp_path):
    folder = tmp_path / "pics"
    content = {
        "place": str(folder), "missing": [folder / "sub" / "a.png"], str(folder / "b.png"): 3,
        "set_aside": [{"path": str(folder / "c.png"), "reason": f"{folder / 'c.png'} is damaged"}],
        "words": ["by ana / bob", "data:image/png;base64,/home"],
    }  # fmt: skip
    assert shortened(content, str(folder), ()) == {
        "place": "pics", "missing": [str(Path("pics/sub/a.png"))], str(Path("pics/b.png")): 3,
        "set_aside": [{"path": str(Path("pics/c.png")),
                       "reason": f"{Path('pics/c.png')} is damaged"}],
        "words": ["by ana / bob", "data:image/png;base64,/home"],
    }  # fmt: skip
    assert shortened(content, str(folder), ("paths",)) == content


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf", "memory"])
def test_the_bucket_and_the_folders_of_an_object_store_stay_out(scheme):
    for written in (f"{scheme}://secret-bucket/of mine/cats", f"{scheme}:/secret-bucket/mine/cats"):
        assert redact_text(f"Skipped in {written}: no words", []) == "Skipped in cats: no words"
        assert redact_settings({"image_dir": written, "note": written}, []) == {
            "image_dir": "cats",
            "note": "cats",
        }
    assert redact_text("see https://host/a/b", []) == "see https://host/a/b"


def test_the_address_of_a_cluster_is_told_with_paths_only():
    settings = {"dataset": {"executor": "ray", "ray_address": "10.0.0.7:6379"}}
    assert redact_settings(settings, ()) == {"dataset": {"executor": "ray"}}
    assert redact_settings(settings, ("paths",)) == settings
