"""The paths of the demo's embedded files, and its training settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from impasto.annotator_table import DEMO_TAGGER
from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.config.setting_files import read_toml

FOLDER = Path(__file__).resolve().parent
BASE_MODEL = FOLDER / "base"
TAGGER = DEMO_TAGGER
CAPTIONER = FOLDER / "captioner"
PICTURES = FOLDER / "pictures"
HELD_OUT = FOLDER / "heldout"
SETTINGS = FOLDER / "demo.toml"


def demo_config(out: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Build the demo's settings, with the paths of the embedded files filled in.

    Derived data goes into the run directory, because the package may be read-only.

    Args:
        out: The run directory.
        overrides: Settings to change, as KEY=VALUE.

    Raises:
        ConfigError: An override is invalid.
    """
    values = read_toml(SETTINGS)
    values["output_dir"] = str(out)
    values["model"]["path"] = str(BASE_MODEL)
    values["dataset"] |= {"image_dir": str(PICTURES), "cache_dir": str(out.absolute() / "derived")}
    values["validation"]["image_dir"] = str(HELD_OUT)
    values["previews"]["prompts"] = held_out_captions()
    return build_run_config(values, overrides, source=str(SETTINGS))


def held_out_captions() -> list[str]:
    """Return the captions of twelve things that the base model knows but the image set lacks."""
    return [p.read_text(encoding="utf-8").strip() for p in sorted(HELD_OUT.glob("*.txt"))]
