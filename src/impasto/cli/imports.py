"""Names the wait while large packages are imported: PyTorch alone takes seconds.

Imports stay where they are used. A finder in front of Python's own sees when one of these packages
is asked for, and shows a stage until its code has run; the verbs need not know.
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
"""Top module -> what it is called. Modules within them are loaded late and are named alike."""

COLLECTED_FROM = 50_000
"""New objects from which Python looks for garbage while it imports; usually from 700 on."""


_QUANTIZERS = ("bitsandbytes", "torchao", "gguf")
_NOTED: dict[str, dict[str, object]] = {
    "diffusers.utils.import_utils": {f"_{name}_available": False for name in _QUANTIZERS},
    "transformers.utils.import_utils": {
        f"is_{name}_available": lambda *_, **__: False for name in _QUANTIZERS
    },
}
"""Module in which a library notes what is installed -> what of that is to say that it is not."""


def show_slow_imports() -> None:
    """Show a stage while one of `PACKAGES` is imported; only the first process of a run does."""
    if is_first_process() and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def leave_out_quantizers() -> None:
    """Have networks imported without what quantizes some, in this process, which is a command.

    diffusers and transformers would import bitsandbytes and torchao for networks that these have
    quantized, of which there are none here, and with them all of PyTorch's compiler: a third of
    what is imported; and torchao warns of libraries that it does not find. Optimizers and layers
    that need one of them import it when they are asked for. Python code that uses Impasto has
    diffusers as it is.
    """
    if not any(isinstance(finder, _WithoutQuantizers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutQuantizers())


class _WithoutQuantizers(importlib.abc.MetaPathFinder):
    """Has the modules in which libraries note what is installed note no quantizers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of such a module; None leaves others to their finders."""
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
    """Finds what Python's own finders do, and wraps the outermost import of a large package."""

    def __init__(self) -> None:
        self._busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of a module of a large package; None leaves it to the others."""
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
    """Look for garbage less often: half a million objects are made here, and nearly all stay.

    Going through them time and again takes a tenth of the import.
    """
    before = gc.get_threshold()
    if before[0]:  # 0 means never
        gc.set_threshold(max(before[0], COLLECTED_FROM), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _wrap(loader: Any, shown: contextlib.AbstractContextManager[None]) -> None:
    """Let a loader, which is this module's alone, show that it is at work."""
    plain = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        with shown:
            plain(module)

    loader.exec_module = exec_module


def _stage(description: str) -> contextlib.AbstractContextManager[Any]:
    """On a terminal a spinner; elsewhere a line on standard error, since output may be JSON.

    Whoever started this process as a task is told too.
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
