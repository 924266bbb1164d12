"""Builds commands for hints, in the form in which this user runs Impasto, and install commands.

`start.py` passes its own command line in `IMPASTO_PROGRAM`. It also passes a file in
`IMPASTO_EXTRA_FILE`: an extra written to it is installed, and the command is run again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from impasto.errors import MissingDependencyError

PROGRAM = "IMPASTO_PROGRAM"
EXTRA_FILE = "IMPASTO_EXTRA_FILE"
EXTRAS = "IMPASTO_EXTRAS"
"""The environment variable that lists the extras that `start.py` has installed."""

STAMP = "impasto-installed.txt"
"""The file by which an environment that `start.py` created is recognised."""

_PLAIN_ON_WINDOWS = re.compile(r"[\w.:/\\@%+=,-]+", re.ASCII)


def quoted(argument: object) -> str:
    """Return an argument for a shell, in quotes if the shell would split or change it."""
    text = str(argument)
    if os.name != "nt":
        return shlex.quote(text)
    return text if _PLAIN_ON_WINDOWS.fullmatch(text) else f'"{text}"'


def program() -> str:
    """Return the start of the command line by which this user runs `impasto`."""
    if given := os.environ.get(PROGRAM):
        return given
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("impasto", "__main__.py"):
        return f"{quoted(sys.orig_argv[0])} -m impasto"
    script = called if called.stem == "impasto" else Path(sys.executable).with_name("impasto")
    found = shutil.which("impasto")
    if found and _same(Path(found), script):
        return "impasto"
    here = Path.cwd()
    if script.is_absolute() and script.is_relative_to(here):
        script = script.relative_to(here)
    return quoted(script)


def is_first_process() -> bool:
    """Return whether this is the main process of a run (rank 0, or without a launcher)."""
    rank = os.environ.get("RANK", "").strip()
    return not rank.isdecimal() or int(rank) == 0


def command(*arguments: object) -> str:
    """Return a command of Impasto as this user would type it: `command("resume", path)`."""
    return " ".join([program(), *map(quoted, arguments)])


def missing_extra(extra: str, problem: str, otherwise: str = "") -> MissingDependencyError:
    """Return the error for a package that one of Impasto's extras would install.

    Args:
        extra: The name of the extra in `pyproject.toml`, such as `tagging`.
        problem: A sentence that states which feature needs which package.
        otherwise: A sentence about what the user can do instead.
    """
    hint = f"{problem} Install it with: {install_extra(extra)}"
    return MissingDependencyError(f"{hint}\n{otherwise}".strip(), extra=extra)


def install_extra(extra: str) -> str:
    """Return the command that installs an extra into this environment, with `start.py` or pip.

    The name `impasto` on the package registry belongs to another project, so the command never
    installs by that name.
    """
    checkout = _checkout()
    if os.environ.get(PROGRAM):
        return f"{program()} --with {extra}"
    if checkout and (Path(sys.prefix) / STAMP).is_file():
        return f"{_start(checkout)} --with {extra}"
    if checkout:
        return install_packages("-e", f"{checkout}[{extra}]")
    return install_packages(*packages_of(extra))


def install_packages(*arguments: str) -> str:
    """Return the command that installs packages into the environment that Impasto runs in."""
    python = quoted(sys.executable)
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        installer = f"uv pip install --python {python}"
    else:
        installer = f"{python} -m pip install"
    return " ".join([installer, *map(quoted, arguments)])


def cuda_build() -> str:
    """Return the command that replaces a CPU build of PyTorch by one for CUDA.

    Without `start.py` the command contains ADDRESS, for the package index that PyTorch's website
    names.
    """
    checkout = _checkout()
    if os.environ.get(PROGRAM):
        return f"{program()} --build cuda --reinstall doctor"
    if checkout and (Path(sys.prefix) / STAMP).is_file():
        return f"{_start(checkout)} --build cuda --reinstall doctor"
    return install_packages("--force-reinstall", "--index-url", "ADDRESS", "torch")


def packages_of(extra: str) -> list[str]:
    """Return the requirements of an extra, from the metadata of the installed package."""
    found = []
    for line in importlib.metadata.requires("impasto") or ():
        requirement, _, marker = line.partition(";")
        if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", marker):
            found.append(requirement.strip())
    return found


def is_installed_by_start(extra: str) -> bool:
    """Return whether `start.py` started this process and has not installed this extra yet."""
    return EXTRA_FILE in os.environ and extra not in os.environ.get(EXTRAS, "").split()


def note_extra(extra: str) -> None:
    """Request `start.py` to install an extra and run the same command again."""
    Path(os.environ[EXTRA_FILE]).write_text(extra, encoding="utf-8")


def _start(checkout: Path) -> str:
    return f"{'py' if os.name == 'nt' else 'python3'} {quoted(checkout / 'start.py')}"


def _checkout() -> Path | None:
    """Return the folder of the source checkout that runs, or None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "start.py").is_file() else None


def _same(one: Path, other: Path) -> bool:
    other = other if other.exists() else other.with_suffix(".exe")
    return one.exists() and other.exists() and one.samefile(other)
