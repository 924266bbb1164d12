"""`impasto dataset tag`, `caption`, `clean`, `tags` and `undo`: words by models and by rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from impasto.cli.dataset_options import CACHE_DIR, SOURCE, dataset_config

if TYPE_CHECKING:
    from impasto.annotate.annotation import Annotated, Annotator, Target
    from impasto.annotate.cleaning import Cleaner
    from impasto.annotate.tags import Selection, Spelling
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord

F = TypeVar("F", bound=Callable[..., Any])
PROMPT_WIDTH = 100


def words_options(ending: str) -> Callable[[F], F]:
    """Where words go, and what becomes of those that are there."""
    options = (
        click.option("--ending", default=ending, show_default=True, help="Of the files written."),
        click.option(
            "--metadata", type=click.Path(path_type=Path), help="Write into this JSON instead."
        ),
        click.option(
            "--existing",
            type=click.Choice(["missing", "overwrite", "append"]),
            default="missing",
            show_default=True,
            help="Only pictures without words; all; or all, after what is there.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the words and write nothing."),
        click.option("--batch", default=8, show_default=True, type=click.IntRange(1)),
        click.option("--workers", type=click.IntRange(0), help="Decoding threads."),
        click.option("--stop-on-error", is_flag=True, help="End at a picture that is unreadable."),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@SOURCE
@click.option(
    "--model",
    default="wd-swinv2-v3",
    show_default=True,
    help="A short name, a Hub id, or the folder or file of a tagger.",
)
@click.option("--provider", type=click.Choice(["cuda", "directml", "coreml", "cpu"]))
@click.option(
    "--kind",
    type=click.Choice(["wd14", "cl-tagger", "pixai", "camie", "joytag", "deepdanbooru"]),
    help="How pictures are prepared, where the model's files do not tell.",
)
@click.option("--logits", is_flag=True, help="The model's output still needs a sigmoid.")
@click.option(
    "--threshold",
    help="Least probability, `balance` for the one its card gives, or `model` for thresholds in "
    "its files.  [default: the kind's own, or 0.35]",
)
@click.option(
    "--category-threshold",
    "by_category",
    multiple=True,
    metavar="CATEGORY=VALUE",
    help="For general, character, copyright, artist, meta, model or year; repeatable.",
)
@click.option("--mcut", is_flag=True, help="Find the threshold of each picture by itself.")
@click.option("--only", multiple=True, metavar="CATEGORY", help="Only these; repeatable.")
@click.option("--by-score", is_flag=True, help="The likeliest first.")
@click.option(
    "--underscores",
    type=click.Choice(["kaomoji", "long", "keep"]),
    default="kaomoji",
    show_default=True,
    help="Spaces but in faces; but in tags of up to 3 characters; or as they are.",
)
@click.option("--rating", type=click.Choice(["off", "first", "last"]), default="off")
@click.option("--quality", type=click.Choice(["off", "first", "last"]), default="off")
@click.option("--characters-first", is_flag=True)
@click.option("--expand-characters", is_flag=True, help="`name (series)` becomes `name, series`.")
@click.option("--first", "always_first", multiple=True, metavar="TAG", help="Put in front.")
@click.option("--drop", "undesired", multiple=True, metavar="TAG", help="Leave out; repeatable.")
@click.option("--replace", default="", metavar="'OLD,NEW;OLD,NEW'", help="Write NEW for OLD.")
@click.option("--escape-brackets", is_flag=True, help=r"`\(` for `(`, as prompts want it.")
@click.option("--counts", is_flag=True, help="Print how often each tag was written.")
@words_options(".txt")
@CACHE_DIR
def tag(
    source: Path,
    model: str,
    provider: str | None,
    kind: str | None,
    logits: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Tag the pictures of SOURCE with a WD14-style tagger or DeepDanbooru.

    \b
    impasto dataset tag pictures --model wd-swinv2-v3 --threshold balance
    impasto dataset tag pictures --model taggers/my-wd14 --dry-run
    """  # noqa: D301 - the backspace tells click to keep the lines
    from dataclasses import replace

    from impasto.annotate.annotation import Tagging
    from impasto.annotate.deepdanbooru import DeepDanbooruTagger
    from impasto.annotate.models import TAGGERS, locate_tagger
    from impasto.annotate.onnx_tagger import OnnxTagger, Tagger, as_logits
    from impasto.annotate.profiles import KINDS
    from impasto.cli.console import Console
    from impasto.training.devices import default_device

    console = Console()
    spelling = _spelling(options)
    place = locate_tagger(model, console)
    tagger: Tagger
    if place.suffix.lower() in (".pt", ".h5", ".keras"):
        tagger = DeepDanbooruTagger(place, default_device())
    else:
        profile = KINDS[kind] if kind else None
        made = OnnxTagger(place, provider=provider, profile=profile, progress=console)
        made.profile = as_logits(made.profile) if logits else made.profile
        tagger = made
    balance = TAGGERS[model].balance if model in TAGGERS else None
    selection = _selection(options, tagger.profile.thresholds, balance, model)
    tagging = Tagging(tagger, selection, replace(spelling))
    target = _target(options, spelling.joined_to, "tags")
    _annotate(source, f"tag {model} {selection} {spelling}", tagging, target, options, console)
    if options["counts"]:
        console.heading("Tags")
        console.table(dict(tagging.counts.most_common()))


@click.command()
@SOURCE
@click.option(
    "--model",
    default="blip-large",
    show_default=True,
    help="A short name, a Hub id, or the folder of a captioner that transformers loads.",
)
@click.option("--prompt", default="", help="What is asked of a chat model, or begun by a BLIP.")
@click.option(
    "--way",
    type=click.Choice(["beam", "sd-scripts", "a1111"]),
    default="beam",
    show_default=True,
    help="How words are searched for: 3 beams, as make_captions.py, or as A1111's interrogator.",
)
@click.option("--beams", type=click.IntRange(1))
@click.option("--top-p", type=click.FloatRange(0, 1), help="Draw words instead; 0 does not.")
@click.option("--min-length", type=click.IntRange(0), help="In tokens.")
@click.option("--max-length", type=click.IntRange(1), help="In tokens.")
@click.option("--repetition-penalty", type=click.FloatRange(0.1))
@click.option("--seed", type=int, help="Of drawing.")
@click.option("--remove-words", is_flag=True, help="Cut out made-up readings (for GIT).")
@click.option("--prefix", default="", help="Put before each caption.")
@click.option("--suffix", default="", help="Put behind each caption.")
@words_options(".caption")
@CACHE_DIR
def caption(source: Path, model: str, way: str, **options: Any) -> None:
    """Caption the pictures of SOURCE with BLIP, GIT, Florence-2 or a chat model.

    \b
    impasto dataset caption pictures --model blip-large
    impasto dataset caption pictures --model Qwen/Qwen2.5-VL-7B-Instruct --prompt "Describe ..."
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.annotate.annotation import Captioning
    from impasto.annotate.captioners import PRESETS, Captioner, with_generation
    from impasto.annotate.models import locate_captioner
    from impasto.cli.console import Console
    from impasto.training.devices import default_device

    console = Console()
    names = ("beams", "top_p", "min_length", "max_length", "repetition_penalty", "seed")
    changes = {name: options[name] for name in names if options[name] is not None}
    found = locate_captioner(model)
    captioner = Captioner.load(
        found,
        default_device(),
        prompt=options["prompt"],
        remove_words=options["remove_words"],
        progress=console,
    )
    captioner.generation = PRESETS[way]
    captioner = with_generation(captioner, **changes)
    before, behind = options["prefix"], options["suffix"]
    annotator = Captioning(captioner, lambda text: f"{before}{text}{behind}".strip())
    target = _target(options, lambda old, new: f"{old}, {new}" if old else new, "caption")
    what = f"caption {model} {captioner.generation} {options['prompt']} {before}|{behind}"
    _annotate(source, what, annotator, target, options, console)


@click.command()
@SOURCE
@click.option(
    "--rules",
    default="plain",
    show_default=True,
    help="`plain`, `kohya` (sd-scripts' own), or a file of rules; --show prints one to begin with.",
)
@click.option("--show", is_flag=True, help="Print the shipped `plain` rules and stop.")
@click.option("--tags-ending", default=".txt", show_default=True)
@click.option("--captions-ending", default=".caption", show_default=True)
@click.option("--dry-run", is_flag=True, help="Show the changes and write nothing.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@CACHE_DIR
def clean(source: Path, rules: str, show: bool, **options: Any) -> None:  # noqa: FBT001
    """Clean tags and captions beside the pictures of SOURCE; shows the changes before it writes."""
    from importlib import resources

    from impasto.annotate.cleaning import load_rules
    from impasto.cli.console import Console

    if show:
        file = resources.files("impasto.annotate") / "rules" / "plain.toml"
        click.echo(file.read_text("utf-8"), nl=False)
        return
    from impasto.annotate.words import Journal

    console, cleaner = Console(), load_rules(rules)
    config = dataset_config(source, options)
    records = _usable(config, console)
    changes, count = _changes(records, cleaner, options["tags_ending"], options["captions_ending"])
    for path, (old, new) in changes.items():
        console.note(f"{path}\n- {old}\n+ {new}")
    console.note(f"{len(changes)} of {count} files would change.")
    if options["dry_run"] or not changes:
        return
    if not options["yes"] and not click.confirm("Write them?"):
        return
    with Journal(config.derived_dir / "annotations", f"clean {rules}") as journal:
        for path, (_, new) in changes.items():
            journal.write(path, new, str(path))
    console.note("Written. Take it back with: impasto dataset undo " + str(source))


@click.command()
@SOURCE
@click.option("--ending", default=".txt", show_default=True, help="Of the files with tags.")
@click.option("--least", default=1, show_default=True, help="Only tags in so many pictures.")
@CACHE_DIR
def tags(source: Path, ending: str, least: int, **options: Any) -> None:
    """Count the tags of SOURCE."""
    from impasto.annotate.cleaning import count_tags
    from impasto.cli.console import Console

    console = Console()
    records = _usable(dataset_config(source, options), console)
    counts = count_tags(_read(record.path.with_suffix(ending)) or "" for record in records)
    rows = {name: count for name, count in counts.most_common() if count >= least}
    if rows:
        console.table(rows)
    console.note(f"{len(rows)} tags in {len(records)} pictures.")


@click.command()
@SOURCE
@click.option("--force", is_flag=True, help="Also restore files that were changed since.")
@CACHE_DIR
def undo(source: Path, force: bool, **options: Any) -> None:  # noqa: FBT001
    """Take back what the last tag, caption or clean wrote for SOURCE, byte for byte."""
    from impasto.annotate import words
    from impasto.cli.console import Console

    console = Console()
    config = dataset_config(source, options)
    undone = words.undo(config.derived_dir / "annotations", force=force)
    console.note(f"{undone.restored} files are as they were.")
    for path in undone.changed_since:
        console.note(f"Left alone, since it was changed meanwhile: {path} (--force restores it)")


def _annotate(
    source: Path,
    what: str,
    annotator: Annotator[Any],
    target: Target,
    options: dict[str, Any],
    console: Console,
) -> None:
    from impasto.annotate.annotation import annotate
    from impasto.annotate.words import Journal

    config = dataset_config(source, {"cache_dir": options["cache_dir"]})
    records = _usable(config, console)
    dry = options["dry_run"]

    def show(record: ImageRecord, text: str) -> None:
        console.note(f"{record.name}: {text}")

    def go(journal: Journal | None) -> Annotated[Any]:
        return annotate(
            records,
            annotator,
            target,
            journal,
            console,
            batch_size=options["batch"],
            workers=options["workers"],
            on_error="stop" if options["stop_on_error"] else "skip",
            show=show if dry else None,
        )

    if dry:
        done = go(None)
    else:
        with Journal(
            config.derived_dir / "annotations", f"{what} {options['existing']}"
        ) as journal:
            done = go(journal)
    console.table(
        {
            "With words now": done.written,
            "Left as they were": done.skipped,
            "Nothing to say": done.empty,
            "Passed over": len(done.set_aside),
        }
    )
    if done.written and not dry:
        console.note(f"Take it back with: impasto dataset undo {source}")


def _usable(config: Any, console: Console) -> Sequence[ImageRecord]:
    """The pictures; what is set aside is said."""
    from impasto.training.pictures import scan_all

    scan = scan_all(config, console)
    for item in scan.set_aside:
        console.note(f"Passed over: {item.path}: {item.reason}")
    return scan.records


def _target(options: dict[str, Any], join: Callable[[str, str], str], column: Any) -> Target:
    from impasto.annotate.words import MetadataWords, Sidecars

    if options["metadata"] is None:
        return Sidecars(options["ending"], options["existing"], join)
    return MetadataWords(
        options["metadata"], column, options["existing"], join, lambda record: record.name
    )


def _spelling(options: dict[str, Any]) -> Spelling:
    from impasto.annotate.tags import Spelling, parse_replacements
    from impasto.errors import ConfigError

    try:
        replacements = parse_replacements(options["replace"])
    except ValueError as error:
        raise ConfigError(f"--replace: {error}.") from error
    return Spelling(
        underscores=options["underscores"],
        undesired=frozenset(options["undesired"]),
        replacements=replacements,
        rating=options["rating"],
        quality=options["quality"],
        characters_first=options["characters_first"],
        expand_characters=options["expand_characters"],
        always_first=options["always_first"],
        escape_brackets=options["escape_brackets"],
    )


def _selection(options: dict[str, Any], kind: Any, balance: float | None, model: str) -> Selection:
    """Which tags are taken, from `--threshold` and its relatives."""
    from impasto.annotate.tags import CATEGORIES, Selection
    from impasto.errors import ConfigError

    asked = options["threshold"]
    by_category = dict(kind) if asked in (None, "model") else {}
    for text in options["by_category"]:
        name, _, value = text.partition("=")
        if name not in CATEGORIES or not value:
            raise ConfigError(
                f"--category-threshold {text!r} does not fit; expected {' or '.join(CATEGORIES)}, "
                f"then =0.5."
            )
        by_category[name] = _probability("--category-threshold", value)
    if asked == "balance" and balance is None:
        raise ConfigError(f"No balance threshold is known for {model}; give a number.")
    threshold = (
        balance if asked == "balance"
        else 0.35 if asked in (None, "model")
        else _probability("--threshold", asked)
    )  # fmt: skip
    return Selection(
        threshold=threshold or 0.0,
        by_category=by_category,
        own_thresholds=asked == "model",
        mcut=options["mcut"],
        categories=frozenset(options["only"] or CATEGORIES),
        by_score=options["by_score"],
    )


def _probability(name: str, text: str) -> float:
    from impasto.errors import ConfigError

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {text!r}; expected a number from 0 to 1.")
    return value


def _changes(
    records: Any, cleaner: Cleaner, tags_ending: str, captions_ending: str
) -> tuple[dict[Path, tuple[str, str]], int]:
    """File -> its words and what becomes of them, where that differs; and how many there are."""
    from impasto.annotate.cleaning import Rules, count_tags

    steps = {tags_ending: cleaner.tags, captions_ending: cleaner.caption}
    found: dict[Path, tuple[str, str]] = {}
    count = 0
    for ending, step in steps.items():
        texts = {r.path.with_suffix(ending): _read(r.path.with_suffix(ending)) for r in records}
        there = {path: text for path, text in texts.items() if text is not None}
        count += len(there)
        cleaned = {path: step(text) for path, text in there.items()}
        if ending == tags_ending and isinstance(cleaner, Rules):
            kept = cleaner.frequent(count_tags(cleaned.values()), len(there))
            cleaned = {path: kept(text) for path, text in cleaned.items()}
        found |= {p: (there[p], new) for p, new in cleaned.items() if new != there[p]}
    return found, count


def _read(path: Path) -> str | None:
    from impasto.errors import DatasetError

    try:
        return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
