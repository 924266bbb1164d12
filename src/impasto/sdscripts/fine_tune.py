"""`fine_tune.py`: sd-scripts' command, run by Impasto's trainer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from impasto.cli.main import run_and_report

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.run import RunConfig
    from impasto.sdscripts.translate import Translation

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
    run_and_report(lambda: fine_tune(list(sys.argv[1:] if arguments is None else arguments)))


def fine_tune(arguments: list[str]) -> None:
    """Train as the flags say.

    Raises:
        ImpastoError: As its parts.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP)
        return
    from impasto.cli.console import Console
    from impasto.sdscripts.parsing import parse_flags

    flags = parse_flags(arguments)
    console = Console()
    resumed = flags.pop("resume", None)
    if resumed is not None:
        _resume(resumed, flags, console)
        return
    from impasto.cli.early import check_run
    from impasto.config.load import build_run_config
    from impasto.sdscripts.translate import translate

    def config_of(translation: Translation) -> RunConfig:
        return build_run_config(translation.tree, source="fine_tune.py")

    # missing files are found before PyTorch is imported; the precision, which needs it, comes then
    check_run(config_of(translate(flags, has_tensorboard=_has_tensorboard())))
    translation = translate(flags, **_machine())
    config = config_of(translation)
    from impasto.cli.finish import finish
    from impasto.training import trainer

    for notice in translation.notices:
        console.note(notice)
    finish(trainer.train(config, console), console)


def _resume(resumed: str, flags: dict[str, Any], console: Console) -> None:
    """Continue a run of Impasto with what the flags change."""
    from impasto.cli.finish import finish
    from impasto.sdscripts.resuming import find_run, resumed_config
    from impasto.training import trainer

    run = find_run(resumed)
    if not flags:
        console.note(f"Continuing {run.path} as its config.toml says.")
        finish(trainer.resume(run.path, console), console)
        return
    config, notices = resumed_config(run, flags, **_machine())
    for notice in notices:
        console.note(notice)
    console.note(f"Continuing {run.path} with the flags that are given, and else as it was.")
    finish(trainer.resume(run.path, console, changed=config), console)


def _machine() -> dict[str, Any]:
    """The facts of this machine that the translation depends on."""
    import torch

    from impasto.training.precision import native_precision

    return {
        "without_gpu": None if torch.cuda.is_available() else native_precision(),
        "has_tensorboard": _has_tensorboard(),
    }


def _has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None
