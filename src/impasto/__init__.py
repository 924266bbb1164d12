"""Impasto fine-tunes Stable Diffusion on one's own captioned images.

The public names are imported on first use, so that `import impasto` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impasto.config.load import load_run_config
    from impasto.config.run import RunConfig
    from impasto.data.plan import plan_images
    from impasto.data.scan import scan_folder
    from impasto.errors import ImpastoError
    from impasto.models.loading import load_base_model
    from impasto.report.page import write_report
    from impasto.runs import RunDirectory
    from impasto.sampling.sampler import Sampler
    from impasto.training.trainer import train

__version__ = "0.1.0"

_HOMES = {
    "ImpastoError": "impasto.errors",
    "RunConfig": "impasto.config.run",
    "RunDirectory": "impasto.runs",
    "Sampler": "impasto.sampling.sampler",
    "load_base_model": "impasto.models.loading",
    "load_run_config": "impasto.config.load",
    "plan_images": "impasto.data.plan",
    "scan_folder": "impasto.data.scan",
    "train": "impasto.training.trainer",
    "write_report": "impasto.report.page",
}

__all__ = [
    "ImpastoError",
    "RunConfig",
    "RunDirectory",
    "Sampler",
    "__version__",
    "load_base_model",
    "load_run_config",
    "plan_images",
    "scan_folder",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'impasto' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
