"""Matches previews of several runs by prompt, seed and size, to show them side by side."""

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
    """A prompt with its seed, and the previews of it in several runs.

    Attributes:
        parameters: Prompt and settings of the first preview, in the format of A1111; the file name
            if it has none.
        files: The name of the preview in each run, in their order; None if the run has none.
        differing: For each run, the settings that are not equal in all runs, as `Sampler: Euler`;
            empty if there are none or the run has no preview.
    """

    parameters: str
    files: tuple[str | None, ...]
    differing: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt, without the seed and the other settings."""
        return self.parameters.partition("\n")[0]


def matching_samples(runs: Sequence[RunDirectory]) -> list[SampleRow]:
    """Match the newest previews of runs by prompt, seed and size.

    Rows that most runs have come first. If a run draws the same prompt several times, such as with
    several samplers, these previews are matched in their order.
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
    """Return the names of a run's newest previews, and the parameters stored in them."""
    step, names = newest_previews(run) or (0, [])
    folder = run.samples / step_name(step)
    return [(name, parameters_of(folder / name)) for name in names]


def _key(parameters: str) -> tuple[str, ...]:
    """Return the prompt, seed and size in parameters."""
    settings = _settings(parameters)
    return (_texts(parameters)[0], *(settings.get(name, "") for name in _MATCHED))


def _texts(parameters: str) -> tuple[str, str, str]:
    """Split parameters in the format of A1111 into prompt, negative prompt and line of settings."""
    texts, _, settings = parameters.rpartition("\n")
    prompt, _, negative = texts.partition(f"\n{_NEGATIVE}: ")
    return prompt, negative, settings


def _settings(parameters: str) -> dict[str, str]:
    """Return all settings by name, including the negative prompt if there is one."""
    _, negative, line = _texts(parameters)
    found = dict(_SETTING.findall(line))
    return {_NEGATIVE: negative, **found} if negative else found
