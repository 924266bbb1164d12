"""Captions: sd-scripts' rules by recorded outputs, and our own promises of being repeatable."""

import pytest

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
MARGIN = 0.06  # over four standard deviations of a frequency from so many draws


def test_every_recorded_case_of_sd_scripts(golden):
    """All outputs that it gives, no others, and about as often."""
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
