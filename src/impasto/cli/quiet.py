"""Silences library output that is meant for developers: warnings, logs and progress bars."""

from __future__ import annotations

import logging
import os
import sys
import warnings

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' bars too
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "HF_HUB_VERBOSITY": "error",  # it reports each attempt to connect without a network
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard's
    "WANDB_SILENT": "true",
}
_LOGGERS = (
    "bitsandbytes", "torch", "torchao", "accelerate", "huggingface_hub", "deepspeed", "PIL",
    "wandb", "torch.utils._pytree",  # torch itself sets the level of "torch" when it is imported
)  # fmt: skip


def quiet_libraries() -> None:
    """Silence the libraries; call this before they are imported.

    Variables that the user has set in the environment stay. PYTHONWARNINGS=default shows warnings
    again.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions and "PYTHONWARNINGS" not in os.environ:
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"  # for child processes
