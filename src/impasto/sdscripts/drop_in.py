"""`fine_tune.py`, `train_db.py`, `sdxl_train.py`: sd-scripts' commands with Impasto's trainer."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from impasto.cli.main import run_and_report
from impasto.cli.together import failing_together
from impasto.errors import OtherFamilyError
from impasto.sdscripts.flag import FINE_TUNE, SDXL_TRAIN, TRAIN_DB, Script

if TYPE_CHECKING:
    from impasto.cli.console import Console

HELP = """{script} takes the flags of sd-scripts' {script}, as in

  {example}

docs/guide/sd-scripts.md explains how each flag is treated. `impasto import-command` writes the
matching settings of Impasto.
"""
EXAMPLES: dict[Script, str] = {
    FINE_TUNE: """accelerate launch --num_cpu_threads_per_process 1 fine_tune.py
    --pretrained_model_name_or_path=<file> --output_dir=<folder> --output_name=<name>
    --dataset_config=<toml> --save_model_as=safetensors --learning_rate=5e-6
    --max_train_steps=10000 --use_8bit_adam --gradient_checkpointing --mixed_precision=fp16""",
    TRAIN_DB: """accelerate launch --num_cpu_threads_per_process 1 train_db.py
    --pretrained_model_name_or_path=<file> --output_dir=<folder> --output_name=<name>
    --dataset_config=<toml> --save_model_as=safetensors --prior_loss_weight=1.0
    --learning_rate=1e-6 --max_train_steps=1600 --use_8bit_adam --xformers --mixed_precision=fp16
    --cache_latents --gradient_checkpointing""",
    SDXL_TRAIN: """accelerate launch sdxl_train.py
    --pretrained_model_name_or_path=<file> --output_dir=<folder> --output_name=<name>
    --dataset_config=<toml> --save_model_as=safetensors --learning_rate=4e-7
    --optimizer_type=adafactor
    --optimizer_args scale_parameter=False relative_step=False warmup_init=False
    --lr_scheduler constant_with_warmup --lr_warmup_steps 100 --max_train_steps=10000
    --mixed_precision=bf16 --full_bf16 --fused_backward_pass --gradient_checkpointing
    --cache_latents --no_half_vae""",
}


def main(script: Script, arguments: Sequence[str] | None = None) -> None:
    """Run an sd-scripts command and exit with a documented code."""
    run_and_report(lambda: run(script, list(sys.argv[1:] if arguments is None else arguments)))


def run(script: Script, arguments: list[str]) -> None:
    """Train as the flags request, or print the help.

    Raises:
        ImpastoError: An error in the flags, the data, the model or the training.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP.format(script=script, example=EXAMPLES[script]))
        return
    from impasto.cli.console import Console
    from impasto.sdscripts.parsing import parse_flags

    console = Console()
    flags = parse_flags(script, arguments, console.note)
    key = flags.get("wandb_api_key")
    if key:
        os.environ["WANDB_API_KEY"] = key
    resumed = flags.pop("resume", None)
    if resumed is None:
        _train(script, flags, console)
    else:
        _resume(script, resumed, flags, console)


def _train(script: Script, flags: dict[str, Any], console: Console) -> None:
    """Start a new run with the flags."""
    from impasto.cli.early import check_run
    from impasto.sdscripts.settings import build_settings, in_terms_of
    from impasto.sdscripts.translate import translate

    # report missing files before PyTorch is imported; the precision, which needs it, is set later
    with failing_together():
        early = translate(script, flags, has_tensorboard=_has_tensorboard())
        check_run(build_settings(script, flags, early.tree))
    translation = translate(script, flags, **_machine())
    config = build_settings(script, flags, translation.tree)
    from impasto.cli.finish import finish
    from impasto.training import trainer

    for notice in translation.notices:
        console.note(notice)
    try:
        finish(lambda: trainer.train(config, console), console)
    except OtherFamilyError as error:
        raise in_terms_of(script, error) from error


def _resume(script: Script, resumed: str, flags: dict[str, Any], console: Console) -> None:
    """Continue the run `resumed` of Impasto, with the settings that the flags change."""
    from impasto.cli.finish import finish
    from impasto.sdscripts.resuming import find_run, resumed_config
    from impasto.training import trainer

    with failing_together():
        run = find_run(resumed)
        config, notices = resumed_config(script, run, flags, **_machine()) if flags else (None, [])
    if config is None:
        console.note(f"Continuing {run.path} with the settings in its config.toml.")
        finish(lambda: trainer.resume(run.path, console), console)
        return
    for notice in notices:
        console.note(notice)
    console.note(f"Continuing {run.path} with the given flags, and otherwise its old settings.")
    finish(lambda: trainer.resume(run.path, console, changed=config), console)


def _machine() -> dict[str, Any]:
    """Return the properties of this machine that the translation depends on."""
    import torch

    from impasto.training.compute.precision import native_precision

    return {
        "without_gpu": None if torch.cuda.is_available() else native_precision(),
        "has_tensorboard": _has_tensorboard(),
    }


def _has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None
