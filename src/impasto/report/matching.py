"""Which previews of several runs belong side by side: those of one prompt, seed and size."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from impasto.report.previews import newest_previews, parameters_of
from impasto.runs import RunDirectory, step_name

_NEGATIVE = "Negative prompt"
_SETTING = re.compile(r"([\w ]+): ([^,]*)(?:, |$)")
_MATCHED = ("Seed", "Size")


@dataclass(frozen=True)
class SampleRow:
    """A prompt with its seed, and the files that show it.

    Attributes:
        parameters: Prompt and settings of the first, as A1111 writes them; the file's name where
            it has none.
        files: The name of the file in each run, in their order; None where it has none.
        differing: The settings of each that are not the same in all, as `Sampler: Euler`; empty
            where there are none or no file.
    """

    parameters: str
    files: tuple[str | None, ...]
    differing: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt of a sample, without the seed and the other settings it was drawn with."""
        return self.parameters.partition("\n")[0]


def matching_samples(runs: Sequence[RunDirectory]) -> list[SampleRow]:
    """The previews that several runs have of the same prompt, seed and size.

    Those that most runs have come first. What runs draw is told by their newest previews. Where a
    run draws the same several times, such as with several samplers, they are matched in order.
    """
    found: dict[tuple[str, ...], dict[int, tuple[str, str]]] = {}
    for number, run in enumerate(runs):
        met = Counter[tuple[str, ...]]()
        for name, parameters in _newest_samples(run):
            key = _key(parameters) if parameters else (name,)
            met[key] += 1
            found.setdefault((*key, str(met[key])), {})[number] = (name, parameters or name)
    rows = [_row(of, len(runs)) for of in found.values()]
    return sorted(rows, key=lambda row: row.files.count(None))


def _row(of: Mapping[int, tuple[str, str]], runs: int) -> SampleRow:
    settings = {number: _settings(parameters) for number, (_, parameters) in of.items()}
    names = dict.fromkeys(name for own in settings.values() for name in own)
    odd = [name for name in names if len({own.get(name) for own in settings.values()}) > 1]
    told = {
        number: ", ".join(f"{name}: {own.get(name, 'none')}" for name in odd)
        for number, own in settings.items()
    }
    return SampleRow(
        next(iter(of.values()))[1],
        tuple(of[number][0] if number in of else None for number in range(runs)),
        tuple(told.get(number, "") for number in range(runs)),
    )


def _newest_samples(run: RunDirectory) -> list[tuple[str, str]]:
    """The names of a run's newest previews, and the parameters in them."""
    step, names = newest_previews(run) or (0, [])
    folder = run.samples / step_name(step)
    return [(name, parameters_of(folder / name)) for name in names]


def _key(parameters: str) -> tuple[str, ...]:
    """The prompt, seed and size of parameters."""
    settings = _settings(parameters)
    return (_texts(parameters)[0], *(settings.get(name, "") for name in _MATCHED))


def _texts(parameters: str) -> tuple[str, str, str]:
    """The prompt, the negative prompt and the line of settings, as A1111 writes them."""
    texts, _, settings = parameters.rpartition("\n")
    prompt, _, negative = texts.partition(f"\n{_NEGATIVE}: ")
    return prompt, negative, settings


def _settings(parameters: str) -> dict[str, str]:
    """All settings, and the negative prompt where there is one."""
    _, negative, line = _texts(parameters)
    found = dict(_SETTING.findall(line))
    return {_NEGATIVE: negative, **found} if negative else found
