"""Which models, images and prompts an evaluation has, where runs say so and where options do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from impasto.cli.evaluate_options import CAPTIONS
from impasto.errors import ConfigError, DatasetError
from impasto.progress import Progress

if TYPE_CHECKING:
    from impasto.config.run import RunConfig
    from impasto.data.records import ImageRecord
    from impasto.evaluation.evaluate import RealImages
    from impasto.evaluation.samples import Contestant
    from impasto.sampling.prompts import Prompt


T = TypeVar("T")
MOST_REAL = 20_000
"""Real images that models are compared with: more cost gigabytes and change no digit."""


def run_config(source: str) -> RunConfig | None:
    """The settings of a run; None of what is no run."""
    from impasto import presence
    from impasto.config.load import load_begun_config
    from impasto.runs.remote.reading import settings_file_of

    file = settings_file_of(source)
    return load_begun_config(file) if presence.is_file(file) else None


def base_models_first(models: Iterable[str], *, without: bool) -> list[str]:
    """The models that are measured: base models of runs first, unless they are given or unwanted.

    Raises:
        ConfigError: A model is given twice, or `without` has no effect.
    """
    given = list(models)
    places = [_place(model) for model in given]
    for model, place in zip(given, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"The model {model} is given twice. Give each once.")
    if without:
        if not any(run_config(model) for model in given):
            raise ConfigError("--without-base has no effect: no model is a run. Take it out.")
        return given
    bases: dict[str, str] = {}
    for model in given:
        config = run_config(model)
        if config is not None and _place(str(config.model.path)) not in places:
            bases.setdefault(_place(str(config.model.path)), str(config.model.path))
    return [*bases.values(), *given]


def _place(source: str) -> str:
    from impasto import presence

    path = Path(source).expanduser()
    return str(path.resolve()) if presence.exists(path) else source


def previewed_size(sources: Iterable[str]) -> tuple[int, int] | None:
    """Width and height of the previews of the first run that draws any; None without one."""
    for source in sources:
        config = run_config(source)
        if config is not None and (config.previews.prompts or config.previews.prompt_file):
            return config.previews.width, config.previews.height
    return None


def real_images(
    sources: Iterable[str], images: Path | None, training: Path | None, progress: Progress
) -> tuple[RealImages, RealImages | None]:
    """The real images, and those that were trained on; the same object where it is one folder.

    Raises:
        ConfigError: There are no real images: no folder was given, and no run held any out.
        DatasetError: A folder is missing or has no usable image.
    """
    config = next(filter(None, (run_config(source) for source in sources)), None)
    trained = held_out = None
    if config is not None and (images is None or training is None):
        from impasto import files
        from impasto.datasets.build import survey

        with files.dry_run():  # what is remembered of a dataset is its own runs' to write
            split = survey(config, progress).split
        own = [record for record in split.training if not record.subset.is_reg]
        trained = _images_of(own, "the run's training images") if own else None
        held = list(split.held_out)
        held_out = _images_of(held, "the run's held-out images") if held else None
    real = held_out if images is None else _images_in(images, progress)
    if real is None:
        raise ConfigError(
            "There are no real images to measure by: no run among the models held any out. Give "
            "--images, a folder of images with captions, best of some that were not trained on."
        )
    shown = _at_most(MOST_REAL, real, progress)
    if training is None:
        return shown, trained
    if images is not None and images.resolve() == training.resolve():
        return shown, real
    return shown, _images_in(training, progress)


def _at_most(most: int, images: RealImages, progress: Progress) -> RealImages:
    """The same images, or some of them evenly spread over all."""
    from dataclasses import replace

    count = len(images.pictures)
    if count <= most:
        return images
    progress.note(f"{images.place}: {most:,} of {count:,} images are compared with.")
    return replace(images, pictures=_spread(images.pictures, most))


def _images_in(folder: Path, progress: Progress) -> RealImages:
    from dataclasses import replace

    from impasto.data.scan import scan_folder
    from impasto.data.subsets import PLAIN

    scan = scan_folder(folder, progress=progress, subset=replace(PLAIN, root=folder))
    return _images_of(scan.records, folder.resolve().name)


def _images_of(records: Iterable[ImageRecord], place: str) -> RealImages:
    """Images of a dataset, each once; named by their paths below its folder."""
    from impasto.evaluation.evaluate import RealImages
    from impasto.evaluation.looking import Picture

    pictures, names, taken = [], dict[Path, str](), set[str]()
    for record in records:
        if record.path not in names:
            names[record.path] = name = _free_name(record, taken)
            taken.add(name)
            pictures.append(Picture(record.path, record.fixed_caption.strip(), record.cut))
    return RealImages(place, pictures, names.__getitem__)


def _free_name(record: ImageRecord, taken: set[str]) -> str:
    """The name of an image without the folders of this machine, which no other one has."""
    from impasto.parsing import printable
    from impasto.publishing import short_path

    is_whole = PurePath(record.name).is_absolute()
    plain = name = printable(short_path(record.name) if is_whole else record.name)
    number = 1
    while name in taken:
        number += 1
        name = f"{plain} ({number})"
    return name


@dataclass(frozen=True)
class Prompts:
    """What is drawn, for any model.

    Attributes:
        texts: The prompts, each with the place of the image whose caption it is.
        made: The prompts for a size, each once.
        count: Images of each.
        fixed: Width and height where they are asked for or a run's previews have them.
    """

    texts: list[tuple[str, int | None]]
    made: Callable[[tuple[int, int]], list[Prompt]]
    count: int
    fixed: tuple[int | None, int | None]

    @classmethod
    def of(
        cls,
        images: RealImages,
        options: dict[str, Any],
        usual: tuple[int | None, int | None],
        asked: tuple[int | None, int | None],
    ) -> Prompts:
        """The prompts of a file, or else the captions of images.

        Raises:
            ConfigError: The file is missing or malformed, or a number is out of range.
            DatasetError: No image has a caption.
        """
        from impasto.sampling.prompt_files import read_prompt_file

        _require_drawable(options)
        file: Path | None = options["prompts"]
        fixed = (asked[0] or usual[0], asked[1] or usual[1])

        def of_file(size: tuple[int, int]) -> list[Prompt]:
            if file is None:
                return [
                    _prompt(text, number, options, size) for number, (text, _) in enumerate(texts)
                ]
            found = read_prompt_file(file, _prompt("", 0, options, size))
            return _spread(found, options["limit"] or len(found))

        texts: list[tuple[str, int | None]] = []
        if file is None:
            texts += _spread(_captions(images), options["limit"] or CAPTIONS)
        else:
            texts += [(prompt.text, None) for prompt in of_file((512, 512))]
        return cls(texts, of_file, options["count"], fixed)

    def of_model(self, model: Contestant) -> list[Prompt]:
        """The prompts for a model, `count` of each with seeds that are the same for all models."""
        from dataclasses import replace

        size = (self.fixed[0] or model.size[0], self.fixed[1] or model.size[1])
        made = self.made(size)
        return [
            replace(prompt, seed=prompt.seed + number * len(made))
            for prompt in made
            for number in range(self.count)
        ]


def _prompt(text: str, number: int, options: dict[str, Any], size: tuple[int, int]) -> Prompt:
    from impasto.sampling.prompts import Prompt

    return Prompt(
        text,
        options["negative"],
        options["seed"] + number,
        *size,
        options["steps"],
        options["guidance"],
        options["sampler"],
        options["guidance_rescale"],
    )


def _captions(images: RealImages) -> list[tuple[str, int]]:
    """Captions with the places of their images.

    Raises:
        DatasetError: There are none.
    """
    captioned = [
        (picture.caption, place) for place, picture in enumerate(images.pictures) if picture.caption
    ]
    if not captioned:
        raise DatasetError(
            f"None of {images.place} has a caption, so there is nothing to draw. Put a .txt of the "
            f"same name beside each image, or give --prompts, a file of prompts."
        )
    return captioned


def _spread(items: Sequence[T], most: int) -> list[T]:
    """All items, or so many of them that are evenly spread over all."""
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]


def _require_drawable(options: dict[str, Any]) -> None:
    """Refuse what no model draws with.

    Raises:
        ConfigError: There is no such sampler, or a side is no multiple of 8.
    """
    from impasto.sampler_table import SAMPLERS

    if options["sampler"] not in SAMPLERS:
        raise ConfigError(
            f"There is no sampler {options['sampler']!r}; choose one of {', '.join(SAMPLERS)}."
        )
    for name in ("width", "height"):
        side = options[name]
        if side is not None and side % 8:
            raise ConfigError(f"--{name} is {side}; expected a multiple of 8.")
