"""The settings of a job as text: reads and replaces their `output_dir`."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import tomli_w

from impasto.errors import ConfigError
from impasto.parsing import is_text, parse_toml
from impasto.remote_paths import is_remote, shown

_OUTPUT_LINE = re.compile(r"^[ \t]*output_dir[ \t]*=.*$", re.MULTILINE)
_FIRST_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def output_of(text: str) -> str:
    """Return the `output_dir` of settings, as it is written there.

    Raises:
        ConfigError: They are not TOML, have none, or have one in an object store.
    """
    output = _parsed(text).get("output_dir")
    if not isinstance(output, str) or not output.strip() or "\0" in output:
        raise ConfigError(
            "The settings have no output_dir. Each job needs one: the folder that its run is "
            'written into, as in output_dir = "runs/my-style".'
        )
    if is_remote(output):
        raise ConfigError(
            f"output_dir is {shown(output)}, in an object store; a queue needs the runs of its "
            f"jobs on a disk. Give a folder, or start the run with impasto train."
        )
    return output


def with_output(text: str, output: str) -> str:
    """Return settings as TOML with another `output_dir`; comments are kept where possible."""
    wanted = {**_parsed(text), "output_dir": output}
    line = tomli_w.dumps({"output_dir": output}).rstrip("\n")
    table = _FIRST_TABLE.search(text)
    head, rest = (text[: table.start()], text[table.start() :]) if table else (text, "")
    changed = _OUTPUT_LINE.sub(lambda _: line, head, count=1) + rest
    try:
        return changed if parse_toml(changed) == wanted else tomli_w.dumps(wanted)
    except tomllib.TOMLDecodeError:  # the line was within a multi-line string
        return tomli_w.dumps(wanted)


def _parsed(text: str) -> dict[str, Any]:
    if not is_text(text):
        raise ConfigError("The settings are not valid text: they contain lone surrogates.")
    try:
        return parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The settings are not valid TOML: {error}.") from error
