"""`fine_tune.py`: sd-scripts' command, run by Impasto's trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.cli.main import run_reporting

if TYPE_CHECKING:
    from impasto.cli.console import Console

HELP = """fine_tune.py takes the flags of sd-scripts' fine_tune.py, as in

  accelerate launch --num_cpu_threads_per_process 1 fine_tune.py
    --pretrained_model_name_or_path=<file> --output_dir=<folder> --output_name=<name>
    --dataset_config=<toml> --save_model_as=safetensors --learning_rate=5e-6
    --max_train_steps=10000 --use_8bit_adam --gradient_checkpointing --mixed_precision=fp16

docs/guide/sd-scripts.md says what becomes of each of them. `impasto import-command` writes the same
as settings of Impasto.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with a documented code."""
    run_reporting(lambda: fine_tune(list(sys.argv[1:] if arguments is None else arguments)))


def fine_tune(arguments: list[str]) -> None:
    """Train as the flags say.

    Raises:
        ImpastoError: As its parts.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP)
        return
    from impasto.cli.console import Console
    from impasto.sdscripts.parsing import given_flags

    flags = given_flags(arguments)
    console = Console()
    resumed = flags.pop("resume", None)
    if resumed is not None:
        _resume(Path(resumed), console)
        return
    import torch

    from impasto.cli.finish import finish
    from impasto.config.load import build_run_config
    from impasto.sdscripts.translate import translate
    from impasto.training import trainer
    from impasto.training.native_precision import native_precision

    without_gpu = None if torch.cuda.is_available() else native_precision()
    translation = translate(flags, without_gpu)
    config = build_run_config(translation.tree, source="fine_tune.py")
    for notice in translation.notices:
        console.note(notice)
    finish(trainer.train(config, console), console)


def _resume(path: Path, console: Console) -> None:
    """Continue a run of Impasto; states of sd-scripts are pickles and lack the step."""
    from impasto.cli.finish import finish
    from impasto.errors import RunError
    from impasto.training import trainer

    run = next((p for p in (path, path.parent.parent) if (p / "config.toml").is_file()), None)
    if run is None:
        raise RunError(
            f"--resume {path} is no run of Impasto. States that sd-scripts saved hold neither step "
            f"nor order of the data and are pickles, which Impasto does not open; start from the "
            f"model that was saved with them. Of Impasto's, give the folder <name>-run."
        )
    console.note(f"Continuing {run} as its config.toml says; other flags change nothing.")
    finish(trainer.resume(run, console), console)
