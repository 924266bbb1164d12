"""Captions: sd-scripts' rules by recorded outputs, and reproducible results."""

import json

import pytest
import tomli_w
from click.testing import CliRunner

from impasto.cli.main import impasto
from impasto.data.captions import CaptionRules, TrainingPosition, join_caption_and_tags

FIELDS = {
    "caption_prefix": "prefix",
    "caption_suffix": "suffix",
    "caption_dropout_rate": "dropout_rate",
    "caption_dropout_every_n_epochs": "dropout_every_n_epochs",
    "enable_wildcard": "wildcards",
    "caption_separator": "separator",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_tokens_separator",
    "secondary_separator": "secondary_separator",
    "shuffle_caption": "shuffle",
    "caption_tag_dropout_rate": "tag_dropout_rate",
    "token_warmup_min": "warmup_min",
    "token_warmup_step": "warmup_steps",
}
SEEDS = 1500
MARGIN = 0.06  # more than four standard deviations of a frequency from that many draws


def test_every_recorded_case_of_sd_scripts(golden):
    """All recorded outputs occur, no others, and about as often."""
    cases = golden("captions.json")["cases"]
    assert len(cases) == 51
    for case in cases:
        rules = CaptionRules(**{FIELDS[key]: value for key, value in case["options"].items()})
        moment = TrainingPosition(case["state"].get("epoch", 1), case["state"].get("step", 0), 100)
        counts = dict.fromkeys(case["allowed"], 0)
        for seed in range(SEEDS):
            text = rules.write(case["caption"], moment, seed, "picture")
            assert text in counts, case["name"]
            counts[text] += 1
        for text, share in case["allowed"].items():
            assert abs(counts[text] / SEEDS - share) < MARGIN, (case["name"], text)


VARIED = CaptionRules(shuffle=True, tag_dropout_rate=0.2, wildcards=True, dropout_rate=0.1)
WORDS = "{red|green} ball, a, b, c, d, e, f"


def test_the_same_showing_always_has_the_same_words():
    moment = TrainingPosition(3, 40, 100)
    first = [VARIED.write(WORDS, moment, 7, "a.png", repeat) for repeat in range(5)]
    assert first == [VARIED.write(WORDS, moment, 7, "a.png", repeat) for repeat in range(5)]
    assert len(set(first)) > 1


@pytest.mark.parametrize("changed", ["epoch", "seed", "picture", "repeat"])
def test_each_of_these_changes_the_draw(changed):
    def texts(value):
        return [
            VARIED.write(
                WORDS,
                TrainingPosition(value if changed == "epoch" else 1, 0, 100),
                value if changed == "seed" else 7,
                value if changed == "picture" else n,
                value if changed == "repeat" else 0,
            )
            for n in range(20)
        ]

    assert texts(1) != texts(2)


def test_steady_words_do_not_depend_on_the_moment():
    rules = CaptionRules(
        prefix="p", shuffle=True, dropout_rate=0.9, dropout_every_n_epochs=1, warmup_steps=50
    ).steady()
    assert {rules.write("a, b", TrainingPosition(e, e, 9), e, e) for e in range(20)} == {"p a, b"}


@pytest.mark.parametrize(
    ("caption", "tags", "expected"),
    [
        ("a cat", "cat, sitting", "a cat, cat, sitting"),
        ("", "cat", "cat"),
        ("a cat", "", "a cat"),
        ("one\ntwo\n", "x\ny", "one, x, y\ntwo, x, y"),
        ("", "line one\nline two", "line one\nline two"),
    ],
)
def test_caption_and_tags_are_joined(caption, tags, expected):
    assert join_caption_and_tags(caption, tags, ",") == expected


def shown(*words):
    done = CliRunner().invoke(impasto, ["dataset", "captions", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def run_with(tmp_path, pictures, **changes):
    for number, path in enumerate(sorted(pictures.glob("*.txt"))):
        path.write_text(f"ball {number}, a, b, c, d, e", encoding="utf-8")
    values = {
        "output_dir": "out",
        "model": {"path": "m"},
        "training": {"max_steps": 1},
        "dataset": {"image_dir": str(pictures), "shuffle_caption": True},
        **changes,
    }
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


def test_captions_of_a_run_are_shown_with_its_own_seed(tmp_path, pictures):
    run = run_with(tmp_path, pictures, seed=7)
    own, same, other = (shown(run, "--json", *seed) for seed in ((), ("--seed", 7), ("--seed", 42)))
    assert own == same != other


def test_a_held_out_image_is_shown_with_the_words_that_validation_uses(tmp_path, pictures):
    run = run_with(tmp_path, pictures, validation={"split": 0.2, "copies": "bytes"})
    lines = shown(run, "--epochs", 3, "--images", 0).splitlines()
    held_out = [line for line in lines if line.startswith("  held out: ")]
    assert len(held_out) == round(13 * 0.2)
    assert all(line.endswith(", a, b, c, d, e") for line in held_out)
    images = json.loads(shown(run, "--images", 0, "--json"))["images"]
    alone = [showings for showings in images.values() if "held_out" in showings[0]]
    assert [len(showings) for showings in alone] == [1] * len(held_out)


def test_the_templates_of_a_hypernetwork_are_put_around_captions(tmp_path, pictures):
    run = run_with(
        tmp_path,
        pictures,
        method={"kind": "hypernetwork", "templates": ["[filewords], art by [name]"]},
        saving={"name": "sunny"},
    )
    lines = [line for line in shown(run).splitlines() if line.startswith("  epoch")]
    assert lines
    assert all(line.endswith(", art by sunny") for line in lines)


def test_one_folder_in_three_datasets_is_three_times_in_the_json(tmp_path, pictures):
    """The JSON lists the folder three times, and counts omitted images."""
    prefixes = ("x", "y", "z")
    datasets = [
        {"subsets": [{"image_dir": str(pictures), "caption_prefix": prefix}]} for prefix in prefixes
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"datasets": datasets}), encoding="utf-8")
    value = json.loads(shown(path, "--json", "--images", 0))
    assert (len(value["images"]), value["images_left_out"]) == (3 * 13, 0)
    words = {one["caption"].split()[0] for own in value["images"].values() for one in own}
    assert words == set(prefixes)
    value = json.loads(shown(path, "--json"))
    assert (len(value["images"]), value["images_left_out"]) == (10, 3 * 13 - 10)
