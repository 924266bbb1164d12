"""Rules for tags and captions: sd-scripts' with its own results, ours on whole tags and words."""

import pytest

from impasto.annotate.cleaning import (
    CleaningRules,
    KohyaCleaner,
    load_rules,
    parse_rules,
)
from impasto.errors import ConfigError


def test_kohyas_rules_equal_sd_scripts(golden):
    """44 lines of tags and 21 captions, recorded from its clean_captions_and_tags.py."""
    pairs = golden("clean_tags.json")
    for case in pairs["tags"]:
        assert KohyaCleaner().tags(case["input"]) == case["output"], case
    for case in pairs["captions"]:
        assert KohyaCleaner().caption(case["input"]) == case["output"], case
    assert len(pairs["tags"]) == 44
    assert len(pairs["captions"]) == 21


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1girl, long_hair, ^_^, o_o", "1girl, long hair, ^_^, o_o"),
        ("shirt, white shirt, t-shirt", "white shirt, t-shirt"),
        ("shirt, white_shirt", "white shirt"),
        ("hair, long hair, 1girl", "long hair, 1girl"),
        ("solo, rating:safe", "solo"),
        ("solo,solo , solo", "solo"),
        # of several people one eye colour is kept, two are removed
        ("2girls, blue eyes, solo", "2girls, blue eyes, solo"),
        ("2girls, blue eyes, red eyes, solo", "2girls, solo"),
        ("1girl, blue eyes, red eyes", "1girl, blue eyes, red eyes"),
        # whole words only: a film's name is not a crowd
        ("girls und panzer, blue eyes, red eyes", "girls und panzer, blue eyes, red eyes"),
        ("", ""),
        (" , ,", ""),
    ],
)
def test_the_plain_rules_on_tags(before, after):
    assert load_rules("plain").tags(before) == after


def test_rules_of_ones_own():
    rules = parse_rules(
        """
        lower_case = true
        drop_tags = ["*watermark*", "signature"]
        keep_implied = ["shirt"]
        drop_words = ["arafed"]
        [replace_tags]
        "tee" = "t-shirt"
        [implications]
        "school uniform" = ["uniform", "clothes"]
        [replace_words]
        "lady" = "woman"
        """,
        "mine",
    )
    line = "Shirt, white shirt, tee, sample watermark, school uniform, clothes, uniform, signature"
    assert rules.tags(line) == "shirt, white shirt, t-shirt, school uniform"
    caption = "Arafed lady with a ladybug. Lady"
    assert rules.caption(caption) == "woman with a ladybug. Woman"


def test_frequency():
    rules = CleaningRules(least_count=2, most_share=0.7)
    texts = ["a, b", "a, c", "a, b"]
    kept = rules.frequent(texts)
    assert [kept(text) for text in texts] == ["b", "", "b"]


@pytest.mark.parametrize("separator", [", ", "; ", " | ", " "])
def test_frequency_by_whatever_stands_between_tags(separator):
    texts = [separator.join(tags) for tags in (["a", "b"], ["a", "c"], ["a", "b"])]
    rare = CleaningRules(separator=separator, least_count=2)
    assert [rare.frequent(texts)(text) for text in texts] == [texts[0], "a", texts[0]]
    assert [CleaningRules(separator=separator).frequent(texts)(text) for text in texts] == texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("drop_tag = []", "unknown key drop_tag; known keys are separator"),
        ("drop_tags = 'x'", "drop_tags is 'x'; expected a list of texts"),
        ("drop_tags = [1]", "expected a list of texts"),
        ("least_count = true", "expected a whole number"),
        ("most_share = false", "expected a number"),
        ("underscores = 1", "expected true or false"),
        ("separator = ''", "expected text, and not an empty one"),
        ("once_if_several = ['* hair']", "expected a list of lists of texts"),
        ("[replace_tags]\na = 1", "expected a table, with text for each key"),
        ("[implications]\n'white shirt' = 'shirt'", "a table, with a list of texts for each key"),
        ("least_count = ", "is not valid TOML"),
    ],
)
def test_rules_that_do_not_fit(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_rules(text, "mine")


def test_unknown_rules():
    with pytest.raises(ConfigError, match="no rule set 'kohja': expected a file, or one of kohya"):
        load_rules("kohja")
