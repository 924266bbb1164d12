"""Which models a run has left on the disk, for whoever averages them."""

from __future__ import annotations

import re
from pathlib import Path

from impasto.config.load import load_begun_config
from impasto.runs import RunDirectory
from impasto.training.builders.model_files import AVERAGE, BEST
from impasto.training.saving.own_models import RECORD


def models_of_run(run: RunDirectory) -> list[Path]:
    """The models of a run that are still there, by step, and the finished one last.

    A finished run may be made longer, so the order in which files were written says nothing.
    Copies of the best one and running averages (`-best`, `-ema` after the run's own name) are left
    out: the first is one of the others, and the second an average already.

    Raises:
        ConfigError: Its settings cannot be read.
        RunError: Its record of models is damaged.
    """
    config = load_begun_config(run.config_file)
    name, suffix = re.escape(config.export_name), r"(?:\.[a-z]+)?"
    again = r"(?:-\d+)?"  # a name beside one that another run had taken
    variants = re.compile(
        rf"{name}(?:{BEST}(?:{AVERAGE})?|(?:-[a-z]*\d+)?{AVERAGE}){again}{suffix}", re.ASCII
    )
    # shorter numbers are those of `again`, of a finished model too
    on_the_way = re.compile(rf"{name}-(?P<word>step|)(?P<number>\d{{6,}}){again}{suffix}", re.ASCII)
    exported = run.exported_model()
    found: dict[Path, tuple[bool, str, int]] = {}
    for record in run.read_json(RECORD).get("written", []):
        model = run.at(record)
        if not model.exists() or variants.fullmatch(model.name):
            continue
        match = on_the_way.fullmatch(model.name)
        if match is None or model == exported:
            found[model] = (True, "", 0)
        else:
            found[model] = (False, match["word"], int(match["number"]))
    has_both = len({kind for is_last, kind, _ in found.values() if not is_last}) > 1
    # by epochs and by steps: they were written in the order of the steps
    return sorted(found, key=lambda model: found[model][0] if has_both else found[model])
