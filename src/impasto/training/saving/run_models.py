"""Lists the models that a run has left on the disk, for averaging them."""

from __future__ import annotations

import re
from pathlib import Path

from impasto.config.load import load_begun_config
from impasto.runs import RunDirectory
from impasto.training.builders.model_files import AVERAGE, BEST
from impasto.training.saving.own_models import RECORD


def models_of_run(run: RunDirectory) -> list[Path]:
    """Return the existing models of a run, sorted by step, with the final model last.

    The order in which files were written is not used, since a finished run may be made longer. Best
    models and running averages (`-best`, `-ema` after the run's own name) are left out: the former
    is a copy of another model, and the latter is an average already.

    Raises:
        ConfigError: The settings of the run cannot be read.
        RunError: The record of models is damaged.
    """
    config = load_begun_config(run.config_file)
    name, suffix = re.escape(config.export_name), r"(?:\.[a-z]+)?"
    again = r"(?:-\d+)?"  # added if another run had written a file of that name
    variants = re.compile(
        rf"{name}(?:{BEST}(?:{AVERAGE})?|(?:-[a-z]*\d+)?{AVERAGE}){again}{suffix}", re.ASCII
    )
    # six digits or more, since shorter numbers are those of `again`, as in the final model's name
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
    # models by epochs and by steps cannot be compared by number, so the record's order is kept
    return sorted(found, key=lambda model: found[model][0] if has_both else found[model])
