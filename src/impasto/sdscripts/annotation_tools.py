"""`finetune/make_captions.py`, `make_captions_by_git.py` and `tag_images_by_wd14_tagger.py`.

The flags are those of kohya-ss/sd-scripts at commit 48d368fa, with the effects that their help
describes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto import files
from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.progress import counted
from impasto.sdscripts.tools import (
    ToolParser,
    image_parser,
    images_of,
    positive,
    run_tool,
    warn_ignored_flags,
)

if TYPE_CHECKING:
    from impasto.annotate.annotation import Annotated, Annotator, Target
    from impasto.annotate.caption_targets import MetadataTarget
    from impasto.annotate.captioners import Captioner, Generation
    from impasto.annotate.dataset_folders import DatasetFolders
    from impasto.annotate.tags import Spelling
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord

BLIP = "Salesforce/blip-image-captioning-large"
_WORKERS = "decoding uses one thread per CPU"


def make_captions() -> None:
    """Run sd-scripts' command `make_captions.py`, which writes captions beside images."""
    parser = image_parser("make_captions.py", "Caption images with BLIP.", ".caption")
    parser.add_argument("--caption_weights", default=BLIP, help="folder or Hub id of a BLIP")
    parser.add_argument(
        "--beam_search", action="store_true", help="beam search instead of sampling"
    )
    parser.add_argument("--batch_size", type=positive, default=1)
    parser.add_argument("--max_data_loader_n_workers", type=int)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--top_p", type=finite, default=0.9)
    parser.add_argument("--max_length", type=int, default=75)
    parser.add_argument("--min_length", type=int, default=5)
    parser.add_argument("--seed", type=int, default=42)
    run_tool(_make_captions, parser)


def _make_captions(options: argparse.Namespace, console: Console) -> None:
    from dataclasses import replace

    from impasto.annotate.captioners import PRESETS, require_generation

    generation = replace(
        PRESETS["sd-scripts"],
        beams=options.num_beams,
        top_p=0.0 if options.beam_search else options.top_p,
        repetition_penalty=1.0 if options.beam_search else 1.1,
        min_length=options.min_length,
        max_length=options.max_length,
        seed=options.seed,
    )
    require_generation(generation)
    source = options.caption_weights
    if "://" in source:
        console.note(f"--caption_weights: weights are not loaded from a URL; using {BLIP}.")
        source = BLIP
    captioner = _captioner(source, console, generation)
    _caption_all(options, captioner, console)


def make_captions_by_git() -> None:
    """Run sd-scripts' command `make_captions_by_git.py`, which writes captions beside images."""
    parser = image_parser("make_captions_by_git.py", "Caption images with GIT.", ".caption")
    parser.add_argument("--model_id", default="microsoft/git-large-textcaps")
    parser.add_argument("--batch_size", type=positive, default=1)
    parser.add_argument("--max_data_loader_n_workers", type=int)
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument(
        "--remove_words",
        action="store_true",
        help="remove text that the model claims to read in images",
    )
    run_tool(_make_captions_by_git, parser)


def _make_captions_by_git(options: argparse.Namespace, console: Console) -> None:
    from impasto.annotate.captioners import Generation

    generation = Generation(beams=1, min_length=0, max_length=options.max_length)
    captioner = _captioner(options.model_id, console, generation)
    captioner.remove_words = options.remove_words
    _caption_all(options, captioner, console)


def _captioner(source: str, console: Console, generation: Generation) -> Captioner:
    from impasto.annotate.captioners import Captioner
    from impasto.training.devices import default_device

    return Captioner.load(source, default_device(), generation=generation, progress=console)


def _caption_all(options: argparse.Namespace, captioner: Captioner, console: Console) -> None:
    from impasto.annotate.annotation import CaptionAnnotator
    from impasto.annotate.caption_targets import Sidecars

    warn_ignored_flags(options, console, max_data_loader_n_workers=_WORKERS)
    folders = _dataset_paths(options)
    target = Sidecars(options.caption_extension, "overwrite", lambda _, new: new, folders)
    _write(options, CaptionAnnotator(captioner), target, console)


def tag_images_by_wd14_tagger() -> None:
    """Run sd-scripts' `tag_images_by_wd14_tagger.py`, which writes tags beside images."""
    run_tool(_tag, _tag_parser())


_THRESHOLDS = ("general", "character", "meta", "model", "copyright", "artist")
_TAG_FLAGS = (
    "append_tags", "frequency_tags", "remove_underscore", "use_rating_tags",
    "use_rating_tags_as_last_tag", "use_quality_tags", "use_quality_tags_as_last_tag",
    "character_tags_first", "character_tag_expand", "onnx", "force_download",
)  # fmt: skip


def _tag_parser() -> ToolParser:
    parser = image_parser(
        "tag_images_by_wd14_tagger.py", "Tag images with a WD14-style tagger.", ".txt"
    )
    parser.add_argument("--repo_id", default="SmilingWolf/wd-v1-4-convnext-tagger-v2")
    parser.add_argument("--model_dir", type=Path, default=Path("wd14_tagger_model"))
    parser.add_argument("--batch_size", type=positive, default=1)
    parser.add_argument("--max_data_loader_n_workers", type=int)
    parser.add_argument("--thresh", type=finite, default=0.35)
    for name in _THRESHOLDS:
        parser.add_argument(f"--{name}_threshold", type=finite)
    parser.add_argument("--caption_separator", default=", ")
    parser.add_argument("--output_path", type=Path, help="one .json or .jsonl for all images")
    for name in ("undesired_tags", "always_first_tags", "tag_replacement"):
        parser.add_argument(f"--{name}", default="")
    for name in _TAG_FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def _tag(options: argparse.Namespace, console: Console) -> None:
    from impasto.annotate.annotation import TagAnnotator
    from impasto.annotate.caption_targets import Policy, Sidecars
    from impasto.annotate.models import locate_tagger
    from impasto.annotate.onnx_tagger import OnnxTagger
    from impasto.annotate.tags import Selection

    warn_ignored_flags(
        options,
        console,
        max_data_loader_n_workers=_WORKERS,
        onnx="taggers always run on ONNX Runtime",
        force_download="the Hub's own cache knows what has changed",
    )
    spelling = _spelling(options)
    kept = options.model_dir / options.repo_id.replace("/", "_")
    model = kept if (kept / "model.onnx").is_file() else options.repo_id
    tagger = OnnxTagger(locate_tagger(str(model), console), progress=console)
    own = {n: getattr(options, f"{n}_threshold") for n in _THRESHOLDS}
    selection = Selection(
        threshold=options.thresh,
        by_category={name: value for name, value in own.items() if value is not None},
        by_score=tagger.profile.by_score,
    )
    tagging = TagAnnotator(tagger, selection, spelling)
    policy: Policy = "append" if options.append_tags else "overwrite"
    if options.output_path is None:
        ending = options.caption_extension
        target: Target = Sidecars(ending, policy, spelling.joined_to, _dataset_paths(options))
    else:
        target = _one_file(options, spelling)
    _write(options, tagging, target, console)
    if options.frequency_tags:
        console.counts("Tag frequencies", tagging.counts)


def _spelling(options: argparse.Namespace) -> Spelling:
    from impasto.annotate.tags import Spelling, parse_replacements

    bare = options.caption_separator.strip() or options.caption_separator

    def listed(text: str) -> list[str]:
        return [piece.strip() for piece in text.split(bare) if piece.strip()]

    try:
        replacements = parse_replacements(options.tag_replacement)
    except ValueError as error:
        raise ConfigError(f"--tag_replacement: {error}.") from error
    return Spelling(
        underscores="long" if options.remove_underscore else "keep",
        undesired=frozenset(listed(options.undesired_tags)),
        replacements=replacements,
        rating=_position(options, "rating"),
        quality=_position(options, "quality"),
        characters_first=options.character_tags_first,
        expand_characters=options.character_tag_expand,
        always_first=tuple(listed(options.always_first_tags)),
        separator=options.caption_separator,
    )


def _position(options: argparse.Namespace, name: str) -> Any:
    """Return "first", "last" or "off"; "last" wins if both flags are given, as in sd-scripts."""
    if getattr(options, f"use_{name}_tags_as_last_tag"):
        return "last"
    return "first" if getattr(options, f"use_{name}_tags") else "off"


def _one_file(options: argparse.Namespace, spelling: Spelling) -> MetadataTarget:
    """Build the target of `--output_path`: one file, `{path: {tags, image_size}}` or JSON lines.

    Without --append_tags the whole file is replaced, as in sd-scripts; with it, other keys of an
    entry are retained. A line of .jsonl has its tags as `caption`.
    """
    from impasto.annotate.caption_targets import MetadataTarget

    file: Path = options.output_path
    if file.suffix.lower() not in (".json", ".jsonl"):
        raise ConfigError(f"--output_path {file} does not end in .json or .jsonl.")
    return MetadataTarget(
        file,
        "tags" if file.suffix.lower() == ".json" else "caption",
        "append" if options.append_tags else "overwrite",
        spelling.joined_to,
        lambda record: str(record.path),
        _dataset_paths(options, file),
        sized=True,
        replaces=not options.append_tags,
        backup=True,
    )


def _dataset_paths(options: argparse.Namespace, metadata: Path | None = None) -> DatasetFolders:
    from impasto.annotate.dataset_folders import DatasetFolders

    folder: Path = options.train_data_dir
    return DatasetFolders((folder,), folder / files.DERIVED_DIR / "annotations", metadata)


def _write(
    options: argparse.Namespace, annotator: Annotator[Any], target: Target, console: Console
) -> None:
    """Annotate the images and write the results, with a journal for `impasto dataset undo`."""
    from impasto.annotate.annotation import ImageReading, annotate
    from impasto.annotate.caption_targets import MetadataTarget
    from impasto.annotate.journal import Journal
    from impasto.canonical import canonical
    from impasto.cli.dataset_annotation import undo_command

    folder = options.train_data_dir
    records = images_of(folder, console, recursive=options.recursive)

    def show(record: ImageRecord, text: str) -> None:
        console.note(f"{record.path}: {text}")

    asked = {k: v for k, v in vars(options).items() if k not in ("train_data_dir", "debug")}
    with Journal(target.folders, canonical(asked)) as journal:
        done: Annotated[Any] = annotate(
            records,
            annotator,
            target,
            journal,
            console,
            show=show if options.debug else None,
            reading=ImageReading(batch_size=options.batch_size),
        )
    console.note(f"{counted(done.written, 'images')} written, {len(done.skipped)} skipped.")
    if isinstance(target, MetadataTarget) and target.kept is not None:
        console.note(f"The old file is kept as {target.kept}.")
    if done.written:
        console.note(f"Undo with: {undo_command(folder, target.folders)}")
