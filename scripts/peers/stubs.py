"""Stands in for the modules that a program imports and its loaders do not use."""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class Stub(types.ModuleType):
    """A module that has everything and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class Nothing:
    """A value of a stub: called, asked or inherited from, it is another."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Another nothing."""
        return Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __iter__(self) -> Any:
        return iter(())

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (Nothing,)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes stubs: of modules under `always`, and of the `missing` that nothing else finds."""

    def __init__(self, *names: str, but: tuple[str, ...] = ()) -> None:
        self.names, self.but = names, but

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """A stub for the modules that this finder is for."""
        covers = any(name == own or name.startswith(f"{own}.") for own in self.names)
        if not covers or name in self.but:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Stub:
        """The stub itself."""
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs in a stub."""


def stub_always(*names: str, but: tuple[str, ...] = ()) -> None:
    """Modules that are stubs even where the real ones are there."""
    sys.meta_path.insert(0, Finder(*names, but=but))


def stub_missing(*names: str) -> None:
    """Modules that are stubs where the real ones are not installed."""
    sys.meta_path.append(Finder(*names))
