"""`impasto dataset tag`: write tags with a tagging model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.annotator_table import TAG_CATEGORIES
from impasto.cli.dataset_annotation import (
    annotation_options,
    uses_ray,
    whole_name,
    write_annotations,
)
from impasto.cli.dataset_options import CACHE_DIR, LOCAL_SOURCE, executor_options

if TYPE_CHECKING:
    from impasto.annotate.onnx_tagger import Tagger
    from impasto.annotate.tags import Selection, Spelling
    from impasto.progress import Progress


@click.command()
@LOCAL_SOURCE
@click.option(
    "--model",
    default="wd-swinv2-v3",
    show_default=True,
    help="A short name, a Hub id, or the folder or file of a tagger.",
)
@click.option(
    "--provider",
    type=click.Choice(["cuda", "directml", "coreml", "cpu"]),
    help="Execution provider of ONNX Runtime; default: the fastest that is installed.",
)
@click.option(
    "--kind",
    type=click.Choice(["wd14", "cl-tagger", "pixai", "camie", "joytag", "deepdanbooru"]),
    help="The kind of tagger, which sets how images are prepared; needed only if the model's files "
    "do not tell.",
)
@click.option("--logits", is_flag=True, help="The model outputs logits, which need a sigmoid.")
@click.option(
    "--threshold",
    help="Minimum probability of a tag; or `balance` for the value on its model card, or `model` "
    "for the thresholds in its files.  [default: that of the kind, or 0.35]",
)
@click.option(
    "--category-threshold",
    "by_category",
    multiple=True,
    metavar="CATEGORY=VALUE",
    help="A threshold for general, character, copyright, artist, meta, model or year; repeatable.",
)
@click.option("--mcut", is_flag=True, help="Choose a threshold per image from its scores (MCut).")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(TAG_CATEGORIES),
    metavar="CATEGORY",
    help="Write only tags of this category; repeatable. --rating and --quality add theirs.",
)
@click.option(
    "--by-score",
    is_flag=True,
    help="Sort tags by probability, highest first; default: the model's order.",
)
@click.option(
    "--underscores",
    type=click.Choice(["kaomoji", "long", "keep"]),
    default="kaomoji",
    show_default=True,
    help="Replace underscores by spaces: except in kaomoji (kaomoji), only in tags of over 3 "
    "characters (long), or never (keep).",
)
@click.option(
    "--rating",
    type=click.Choice(["off", "first", "last"]),
    default="off",
    show_default=True,
    help="Write the rating tag first or last among the tags, or leave it out (off).",
)
@click.option(
    "--quality",
    type=click.Choice(["off", "first", "last"]),
    default="off",
    show_default=True,
    help="Write the quality tag first or last among the tags, or leave it out (off).",
)
@click.option("--characters-first", is_flag=True, help="Put character tags before all others.")
@click.option("--expand-characters", is_flag=True, help="Write `name (series)` as `name, series`.")
@click.option(
    "--first",
    "always_first",
    multiple=True,
    metavar="TAG",
    help="Always write this tag first; repeatable.",
)
@click.option(
    "--drop",
    "undesired",
    multiple=True,
    metavar="TAG",
    help="Leave this tag out; repeatable.",
)
@click.option(
    "--replace", default="", metavar="'OLD,NEW;OLD,NEW'", help="Write NEW instead of OLD."
)
@click.option("--escape-brackets", is_flag=True, help=r"Write `\(` for `(`, as needed in prompts.")
@click.option("--counts", is_flag=True, help="Print how often each tag was written.")
@annotation_options(".txt")
@CACHE_DIR
@executor_options
def tag(
    source: Path,
    model: str,
    provider: str | None,
    kind: str | None,
    logits: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Tag the images of SOURCE with a WD14-style tagger or DeepDanbooru.

    \b
    impasto dataset tag images --model wd-swinv2-v3 --threshold balance
    impasto dataset tag images --model taggers/my-wd14 --dry-run
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.annotate.annotation import TagAnnotator
    from impasto.annotate.models import TAGGERS
    from impasto.annotate.onnx_tagger import OnnxTagger, as_logits
    from impasto.annotate.profiles import KINDS
    from impasto.annotate.remote import RemoteAnnotator, TaggerRecipe, tags_on_gpu
    from impasto.cli.console import Console

    console = Console()
    spelling = _spelling(options)
    remote = uses_ray(source, options)
    tagger = load_tagger(model, console, "cpu" if remote else provider, kind, on_gpu=not remote)
    if logits and isinstance(tagger, OnnxTagger):
        tagger.profile = as_logits(tagger.profile)
    balance = TAGGERS[model].balance if model in TAGGERS else None
    selection = selection_of(options, tagger.profile.thresholds, balance, model)
    if unknown := spelling.unknown(tagger.table):
        console.note(
            f"{model} has no tag {', '.join(map(repr, unknown))}: --drop, --first or --replace has "
            f"no effect for it."
        )
    tagging: TagAnnotator | RemoteAnnotator = TagAnnotator(tagger, selection, spelling)
    if remote:
        on_gpu = tags_on_gpu(tagger, provider)
        recipe = TaggerRecipe(
            whole_name(model), provider, KINDS[kind] if kind else None, logits,
            "cuda" if on_gpu else "cpu", selection, spelling,
        )  # fmt: skip
        tagging = RemoteAnnotator(tagging.prepare, recipe, on_gpu)
    command = ["tag", model, kind, logits, selection, spelling]
    write_annotations(source, command, tagging, spelling.joined_to, "tags", options, console)
    if options["counts"]:
        console.counts("Tags", tagging.counts)


def load_tagger(
    model: str,
    progress: Progress,
    provider: str | None = None,
    kind: str | None = None,
    *,
    on_gpu: bool = True,
) -> Tagger:
    """Load a tagger by its name or path; download it if needed.

    Args:
        model: A short name, a Hub id, or the folder or file of a tagger.
        progress: Shows the progress of downloading and loading.
        provider: The execution provider of ONNX Runtime; None chooses the fastest.
        kind: The kind of tagger; None reads it from the model's files.
        on_gpu: Whether a PyTorch tagger may run on a GPU.
    """
    import torch

    from impasto.annotate.profiles import KINDS
    from impasto.annotate.remote import open_tagger
    from impasto.training.devices import default_device

    device = default_device() if on_gpu else torch.device("cpu")
    return open_tagger(model, device, provider, KINDS[kind] if kind else None, progress)


def _spelling(options: dict[str, Any]) -> Spelling:
    from impasto.annotate.tags import UNDERSCORES, Spelling, parse_replacements
    from impasto.errors import ConfigError

    try:
        replacements = parse_replacements(options["replace"])
    except ValueError as error:
        raise ConfigError(f"--replace: {error}.") from error
    spelt, own = UNDERSCORES[options["underscores"]], set(replacements.values())

    def written(name: str) -> str:
        """Return a tag as it is written; a replacement given by the user is left unchanged."""
        return name if name in own else spelt(name)

    return Spelling(
        underscores=options["underscores"],
        undesired=frozenset(map(written, options["undesired"])),
        replacements={spelt(old): new for old, new in replacements.items()},
        rating=options["rating"],
        quality=options["quality"],
        characters_first=options["characters_first"],
        expand_characters=options["expand_characters"],
        always_first=tuple(map(written, options["always_first"])),
        escape_brackets=options["escape_brackets"],
    )


def selection_of(
    options: dict[str, Any], kind: Any, balance: float | None, model: str
) -> Selection:
    """Build the rules that select tags from `--threshold` and related options.

    Args:
        options: The options of the command.
        kind: Default thresholds by category, of the model's kind.
        balance: The threshold for `balance`; None if none is known.
        model: The model, for error messages.

    Raises:
        ConfigError: An option is malformed, or there is no balance threshold.
    """
    from impasto.annotate.tags import CATEGORIES, Selection
    from impasto.errors import ConfigError

    asked = options["threshold"]
    by_category = dict(kind) if asked in (None, "model") else {}
    for text in options["by_category"]:
        name, _, value = text.partition("=")
        if name not in CATEGORIES or not value:
            raise ConfigError(
                f"--category-threshold {text!r} is invalid; expected {' or '.join(CATEGORIES)}, "
                f"then a number, as in general=0.5."
            )
        by_category[name] = _probability("--category-threshold", value)
    if asked == "balance" and balance is None:
        raise ConfigError(f"No balance threshold is known for {model}; give a number.")
    threshold = (
        balance if asked == "balance"
        else 0.35 if asked in (None, "model")
        else _probability("--threshold", asked, ", balance or model")
    )  # fmt: skip
    return Selection(
        threshold=threshold or 0.0,
        by_category=by_category,
        own_thresholds=asked == "model",
        mcut=options["mcut"],
        categories=_categories(options),
        by_score=options["by_score"],
    )


def _categories(options: dict[str, Any]) -> frozenset[str]:
    """Return the categories in `--only`, or all, plus those that `--rating` and `--quality` add."""
    from impasto.annotate.tags import CATEGORIES, ONE_OF
    from impasto.errors import ConfigError

    only = options["only"]
    unwritten = sorted(category for category in ONE_OF & set(only) if options[category] == "off")
    if unwritten:
        name = unwritten[0]
        raise ConfigError(
            f"--only {name} has no effect: --{name} is off. Add --{name} first or --{name} last."
        )
    return frozenset(only or CATEGORIES) | {name for name in ONE_OF if options[name] != "off"}


def _probability(name: str, text: str, words: str = "") -> float:
    from impasto.errors import ConfigError

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {text!r}; expected a number from 0 to 1{words}.")
    return value
