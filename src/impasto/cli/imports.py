"""Shows progress while large packages are imported: PyTorch alone takes seconds.

Imports stay where they are used. A finder in front of Python's own detects the import of one of
these packages and shows a stage until it is finished; commands need no code for that.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from impasto.cli.recorded import task_log
from impasto.invocation import is_first_process

PACKAGES = {
    "torch": "PyTorch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "pytorch_optimizer": "pytorch-optimizer",
    "onnxruntime": "ONNX Runtime",
    "deepspeed": "DeepSpeed",
    "tensorboard": "TensorBoard",
    "wandb": "W&B",
}
"""Top-level module -> display name. Submodules that are loaded later have the same name."""

COLLECTED_FROM = 50_000
"""The garbage collection threshold during imports, in new objects; Python's default is 700."""


_QUANTIZERS = ("bitsandbytes", "torchao", "gguf")
_NOTED: dict[str, dict[str, object]] = {
    "diffusers.utils.import_utils": {f"_{name}_available": False for name in _QUANTIZERS},
    "transformers.utils.import_utils": {
        f"is_{name}_available": lambda *_, **__: False for name in _QUANTIZERS
    },
}
"""Module in which a library records what is installed -> the values that mark it as missing."""


def show_slow_imports() -> None:
    """Show a stage while one of `PACKAGES` is imported; only in the first process of a run."""
    if is_first_process() and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def leave_out_quantizers() -> None:
    """Import networks without quantization libraries in this process, which is a command.

    diffusers and transformers would import bitsandbytes and torchao to support quantized networks,
    which Impasto does not use, and with them all of PyTorch's compiler: a third of all imports.
    torchao would also warn about missing libraries. Optimizers and layers that need one of these
    libraries import it when they are used. In Python code that uses Impasto, diffusers is
    unchanged.
    """
    if not any(isinstance(finder, _WithoutQuantizers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutQuantizers())


class _WithoutQuantizers(importlib.abc.MetaPathFinder):
    """Makes libraries record quantization packages as not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of a module in `_NOTED`, or None for all others."""
        if fullname not in _NOTED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _wrap(spec.loader, _noting_no_quantizers(fullname))
        return spec


@contextlib.contextmanager
def _noting_no_quantizers(module: str) -> Iterator[None]:
    yield
    noted = vars(sys.modules[module])
    noted |= {name: value for name, value in _NOTED[module].items() if name in noted}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as Python does, and shows a stage for the outermost import of a package."""

    def __init__(self) -> None:
        self._busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of a module of a large package, or None for all others."""
        if self._busy or fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _wrap(spec.loader, self._showing(PACKAGES[fullname.partition(".")[0]]))
        return spec

    @contextlib.contextmanager
    def _showing(self, name: str) -> Iterator[None]:
        if self._busy:
            yield
            return
        self._busy = True
        try:
            with _stage(f"Loading {name}"), _fewer_collections():
                yield
        finally:
            self._busy = False


@contextlib.contextmanager
def _fewer_collections() -> Iterator[None]:
    """Collect garbage less often: half a million objects are made here, and nearly all stay.

    Scanning them again and again takes a tenth of the import time.
    """
    before = gc.get_threshold()
    if before[0]:  # 0 means never
        gc.set_threshold(max(before[0], COLLECTED_FROM), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _wrap(loader: Any, shown: contextlib.AbstractContextManager[None]) -> None:
    """Make a loader, which serves this module only, run inside the context `shown`."""
    plain = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        with shown:
            plain(module)

    loader.exec_module = exec_module


def _stage(description: str) -> contextlib.AbstractContextManager[Any]:
    """Show a spinner on a terminal, or else a line on standard error, since output may be JSON.

    If this process is a task, the stage is added to its log too.
    """
    from rich.console import Console as RichConsole

    from impasto.cli.stages import Stage, progress_bar_if_slow, progress_lines

    stage = Stage(description, None, "modules")
    output = RichConsole(soft_wrap=True, highlight=False, emoji=False)
    if output.is_terminal:
        shown: contextlib.AbstractContextManager[Any] = progress_bar_if_slow(output, stage)
    else:
        error = RichConsole(stderr=True, highlight=False, emoji=False)
        shown = progress_lines(error, stage)
    log = task_log()
    return shown if log is None else _both(log.stage(description, None, "modules"), shown)


@contextlib.contextmanager
def _both(*shown: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as opened:
        for one in shown:
            opened.enter_context(one)
        yield
