"""`impasto new`: settings to begin with, from the examples that come with the program."""

from __future__ import annotations

from pathlib import Path

import click

from impasto import presence


@click.command()
@click.argument("example", required=False)
@click.argument("file", type=click.Path(path_type=Path), required=False)
def new(example: str | None, file: Path | None) -> None:
    """Write the settings EXAMPLE to FILE, by default EXAMPLE.toml here; alone, list them.

    \b
    impasto new
    impasto new style-12gb my-style.toml
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console
    from impasto.invocation import command

    console = Console()
    examples = _examples()
    if example is None:
        console.table({name: _first_words(path) for name, path in examples.items()})
        return
    target = _write(examples, example, file)
    is_run = "output_dir" in target.read_text(encoding="utf-8")
    words = ("train", target, "--plan") if is_run else ("dataset", "plan", target)
    console.note(f"Wrote {target}. Set its paths, then see what it would do:\n  {command(*words)}")


def _examples() -> dict[str, Path]:
    """The example settings by name: those of the checkout, or those that the wheel carries."""
    package = Path(__file__).resolve().parents[1]
    folders = (package.parents[1] / "configs", package / "examples")
    folder = next((f for f in folders if presence.is_file(f / "style-12gb.toml")), folders[1])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _first_words(path: Path) -> str:
    """What the first comment of an example says it is for, in one sentence."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").strip()


def _write(examples: dict[str, Path], name: str, file: Path | None) -> Path:
    """Copy an example; its own comments then name the copy.

    Raises:
        ConfigError: There is no such example, with the nearest; or the file is there.
    """
    import difflib

    from impasto import files
    from impasto.errors import ConfigError

    name = name.removesuffix(".toml")
    if name not in examples:
        near = difflib.get_close_matches(name, examples, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"There is no example {name!r}.{hint} There are: {', '.join(examples) or 'none'}."
        )
    target = file or Path(f"{name}.toml")
    if presence.exists(target):
        raise ConfigError(f"{target} is already there and was not touched. Name another file.")
    text = examples[name].read_text(encoding="utf-8")
    files.write_text(target, text.replace(f"configs/{name}.toml", target.as_posix()))
    return target
