"""Finds what a function refers to: globals, closure variables, attributes of other modules."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from impasto.training.fingerprints.users_code import is_module_of_user

_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


def cells_of(function: FunctionType) -> dict[str, Any]:
    """Return the closure variables of a function, by name; unassigned ones are left out.

    A variable is unassigned if, for example, it is a function defined in a branch not taken.
    """
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # the cell is empty
            continue
    return found


def references(function: FunctionType, counts: Callable[[str, Any], bool]) -> dict[str, Any]:
    """Return the globals and attributes of the user's modules that a function reads, by path.

    Args:
        function: The function; functions defined in it are included.
        counts: Returns whether a named value is to be included.
    """
    code = function.__code__
    names = sorted(global_names(code, *_GLOBALS) & function.__globals__.keys())
    read = {name: function.__globals__[name] for name in names}
    found = {name: value for name, value in read.items() if counts(name, value)}
    attributes = {i.argval for i in _instructions(code) if i.opname in _ATTRIBUTES}
    for name, value in (read | cells_of(function)).items():
        if inspect.ismodule(value):
            of_module = attributes - _assigned(code, name)
            found |= _read_of(value, name, of_module, counts)
    return found


def global_names(code: CodeType, *operations: str) -> set[str]:
    """Return the global names that code, with functions in it, reads and never assigns.

    Args:
        code: The code.
        operations: The names of the instructions that read a global.
    """
    instructions = list(_instructions(code))
    read = {i.argval for i in instructions if i.opname in operations}
    return read - {i.argval for i in instructions if i.opname == "STORE_GLOBAL"}


def _read_of(
    module: ModuleType, path: str, names: set[str], counts: Callable[[str, Any], bool]
) -> dict[str, Any]:
    """Return a module's values whose name is that of some attribute that the code reads, by path.

    Bytecode does not show which object an attribute is read from, so each module is searched.
    """
    found: dict[str, Any] = {}
    modules, looked_in = [(path, module)], set()
    for where, inside in modules:  # grows during the loop
        if inside.__name__ in looked_in or not is_module_of_user(inside.__name__):
            continue
        looked_in.add(inside.__name__)
        for name in sorted(names & vars(inside).keys()):
            value = vars(inside)[name]
            if inspect.ismodule(value):
                modules.append((f"{where}.{name}", value))
            elif counts(name, value):
                found[f"{where}.{name}"] = value
    return found


def _assigned(code: CodeType, module: str) -> set[str]:
    """Return the attributes of a module that code assigns, as by `m.x = 1` and `m.x += 1`."""
    found, before = set(), ["", ""]
    for instruction in _instructions(code):
        told = str(instruction.argval) if instruction.opname.startswith("LOAD") else ""
        is_assigned = instruction.opname == "STORE_ATTR" and before[-1] == module
        is_changed = instruction.opname in _ATTRIBUTES and before == [module, "COPY"]
        if is_assigned or is_changed:
            found.add(instruction.argval)
        before = [before[-1], "COPY" if instruction.opname == "COPY" else told]
    return found


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Yield the instructions of code and of the functions within it."""
    yield from (i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG")
    for part in code.co_consts:
        if inspect.iscode(part):
            yield from _instructions(part)
