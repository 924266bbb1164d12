"""Stubs for modules that a program imports and its loaders do not use."""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class Stub(types.ModuleType):
    """A module that has every attribute, all of them inert."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class Nothing:
    """A value of a stub: calling it, reading an attribute or inheriting from it gives another."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Return another inert value."""
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
    """Imports the named modules, and modules below them, as stubs, except those in `but`."""

    def __init__(self, *names: str, but: tuple[str, ...] = ()) -> None:
        self.names, self.but = names, but

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """Return a stub's spec for a module that this finder covers, or None."""
        covers = any(name == own or name.startswith(f"{own}.") for own in self.names)
        if not covers or name in self.but:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Stub:
        """Return the stub."""
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run nothing: a stub has no code."""


def stub_always(*names: str, but: tuple[str, ...] = ()) -> None:
    """Import modules as stubs even if the real ones are installed."""
    sys.meta_path.insert(0, Finder(*names, but=but))


def stub_missing(*names: str) -> None:
    """Import modules as stubs if the real ones are not installed."""
    sys.meta_path.append(Finder(*names))
