"""Parts that are given in code, as texts: they tell contents apart and outlive Impasto's edits."""

import functools
import inspect
import logging
import sys
from collections import namedtuple
from pathlib import Path, PureWindowsPath
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional

from impasto.diffusion.timesteps import LogitNormal
from impasto.training.fingerprints.code_identity import described, is_same_code


class Weighed:
    def __init__(self, held):
        self.held = held

    def __call__(self, loss):
        return loss


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.ones(3)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(3, np.float32), np.zeros(3, np.int32)),
        (np.array([1, "a"], object), np.array([1, "b"], object)),
        (np.float32(1), np.float32(2)),
        ({1, 2}, {3}),
        (frozenset("ab"), frozenset("ac")),
        (b"a", b"b"),
        (bytearray(b"a"), bytearray(b"b")),
        (Path("a"), Path("b")),
        (1 + 2j, 1 + 3j),
        (torch.zeros(2), torch.ones(2)),
        ({"a": [1, (2,)]}, {"a": [1, (3,)]}),
        (Pair(1, 2), Pair(1, 3)),
        (functools.partial(max, 1), functools.partial(max, 2)),
    ],
)
def test_what_a_part_holds_counts(one, other):
    assert described(Weighed(one)) == described(Weighed(one))
    assert described(Weighed(one)) != described(Weighed(other))


def test_the_order_of_a_set_and_the_system_do_not_count():
    assert described(Weighed({"a", "b", "c"})) == described(Weighed({"c", "a", "b"}))
    assert described(Weighed(Path("a/b"))) == described(Weighed(PureWindowsPath("a\\b")))


def test_impasto_may_be_edited_and_others_code_may_not(monkeypatch):
    own, others = described(LogitNormal(0.0, 1.0)), described(Weighed(1))
    assert own != described(LogitNormal(0.0, 2.0))
    sources = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda value: sources(value) + "# edited\n")
    assert described(LogitNormal(0.0, 1.0)) == own
    assert described(Weighed(1)) != others
    monkeypatch.setattr(LogitNormal, "__module__", "impasto.diffusion.elsewhere")
    assert described(LogitNormal(0.0, 1.0)) == own


GAMMA = 1.0
TABLE = {"a": torch.zeros(2)}


def helper(loss, scale=2.0):
    return loss * scale


def with_constant(loss):
    return loss * GAMMA


def with_table(loss):
    return [loss * TABLE[name] for name in "a"]


def with_helper(loss):
    return helper(loss)


def with_default(loss, *, gamma=1.0):
    return loss * gamma


class Parent:
    strength = 1.0

    def __call__(self, loss):
        return helper(loss) * GAMMA


class Child(Parent):
    pass


@pytest.mark.parametrize("part", [with_constant, Child(), Weighed(with_constant)])
def test_constants_of_the_module_count(monkeypatch, part):
    before = described(part)
    assert described(part) == before
    monkeypatch.setattr(sys.modules[__name__], "GAMMA", 10.0)
    assert described(part) != before


def test_tensors_helpers_defaults_and_class_attributes_count(monkeypatch):
    parts = [with_table, with_helper, with_default, Child()]
    before = list(map(described, parts))
    monkeypatch.setitem(TABLE, "a", torch.ones(2))
    monkeypatch.setattr(helper, "__defaults__", (3.0,))
    monkeypatch.setattr(with_default, "__kwdefaults__", {"gamma": 2.0})
    monkeypatch.setattr(Parent, "strength", 2.0)
    assert not set(before) & set(map(described, parts))


def test_objects_of_the_module_and_code_of_packages_do_not_count(monkeypatch):
    """A logger holds locks and addresses; of torch the version counts, not its source."""
    before = described(with_log)
    LOG.addHandler(logging.NullHandler())
    monkeypatch.setattr(functional, "mse_loss", functional.l1_loss)
    assert described(with_log) == before


LOG = logging.getLogger(__name__)


def with_log(output, target):
    LOG.debug("%s", output)
    return functional.mse_loss(output, target)


history = [1.0]
calls = 0


def with_history(loss):
    global calls
    calls += 1
    history.append(loss)
    return loss * len(history)


class Noting:
    seen = []  # noqa: RUF012 - of all of them

    def __call__(self, loss):
        self.seen.append(loss)
        return loss


def test_what_the_code_changes_as_it_runs_does_not_count():
    parts = [with_history, Noting()]
    before = list(map(described, parts))
    for part in parts:
        part(1.0)
    assert list(map(described, parts)) == before


def test_descriptions_of_earlier_versions_are_compared_by_what_they_say(monkeypatch):
    """They know the source and what is held, and not what the code refers to."""
    now = described(with_constant)
    former = now.rpartition(" ")[0]
    monkeypatch.setattr(sys.modules[__name__], "GAMMA", 10.0)
    changed = described(with_constant)
    assert is_same_code(former, changed)
    assert not is_same_code(now, changed)
    assert not is_same_code(former, described(with_helper))


def test_the_first_hash_is_that_of_earlier_versions():
    """Recorded by the version before constants counted."""
    assert described(functools.partial(max, 1)).startswith("functools.partial fe85fdaa6d7c1b67 ")


@pytest.mark.parametrize(
    ("file", "module", "is_installed"),
    [
        ("site-packages/torchlike/nn/modules.py", "torchlike.nn.modules", True),
        ("dist-packages/torchlike/__init__.py", "torchlike", True),
        ("target/torchlike/nn/__init__.py", "torchlike.nn", True),
        ("project/torchlike/nn/__init__.py", "torchlike.nn", False),
        ("project/loss.py", "loss", False),
    ],
)
def test_what_is_installed_is_not_the_users_code(tmp_path, monkeypatch, file, module, is_installed):
    """By pip for one user, into a folder of its own, or by the system."""
    (tmp_path / "target" / "torchlike-2.0.dist-info").mkdir(parents=True)
    stand_in = ModuleType(module)
    stand_in.__file__ = str(tmp_path / file)
    monkeypatch.setitem(sys.modules, module, stand_in)
    part = type("Loss", (), {"__module__": module, "scale": 1.0})()
    before = described(part)
    type(part).scale = 2.0
    assert (described(part) == before) == is_installed
