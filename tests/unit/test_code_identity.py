"""Components given in code, as texts: they identify contents, and survive Impasto's edits."""

import functools
import inspect
import logging
import sys
from collections import namedtuple
from dataclasses import dataclass
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
    """Earlier descriptions have the source and held values, but not the names the code refers
    to."""
    now = described(with_constant)
    former, middle = (" ".join(now.split()[:words]) for words in (2, 3))
    assert is_same_code(middle, now)
    monkeypatch.setattr(sys.modules[__name__], "GAMMA", 10.0)
    changed = described(with_constant)
    assert is_same_code(former, changed)
    assert not is_same_code(middle, changed)
    assert not is_same_code(now, changed)
    assert not is_same_code(former, described(with_helper))
    name, first, second, third = now.split()
    assert is_same_code(f"{name} other other {third}", now)  # which differed between versions
    assert not is_same_code(f"{name} {first} {second} other", now)


def test_the_first_hash_is_that_of_earlier_versions():
    """Recorded by the version before constants counted; the second by the next version."""
    assert described(functools.partial(max, 1)).startswith(
        "functools.partial fe85fdaa6d7c1b67 a2b73231aae7bc85 "
    )


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
    """Packages installed by pip into the user's own folder, or by the system, are recognised."""
    (tmp_path / "target" / "torchlike-2.0.dist-info").mkdir(parents=True)
    stand_in = ModuleType(module)
    stand_in.__file__ = str(tmp_path / file)
    monkeypatch.setitem(sys.modules, module, stand_in)
    part = type("Loss", (), {"__module__": module, "scale": 1.0})()
    before = described(part)
    type(part).scale = 2.0
    assert (described(part) == before) == is_installed


def h0(loss, scale=1.0):
    return loss * scale


def h1(loss):
    return h0(loss)


def h2(loss):
    return h1(loss)


def h3(loss):
    return h2(loss)


def h4(loss):
    return h3(loss)


def ring(loss):
    return ring(h4(loss)) if loss > 1 else loss


@functools.lru_cache
def remembered(loss):
    return h0(loss)


halved = functools.partial(h0, scale=0.5)
RINGS = {"a": [h4, halved]}


@dataclass(frozen=True)
class Strength:
    value: float
    measure: object = h0


@dataclass
class Bare:
    values: tuple = (Strength(1.0),)


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


class Critic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        self._gain = 2.0

    def forward(self, loss):
        return h0(loss)


STRENGTH, OWN, CRITIC = Strength(1.0), Weighed(1.0), Critic()


class Wrapped:
    @staticmethod
    def static(loss):
        return h0(loss)

    @classmethod
    def of_class(cls, loss):
        return h0(loss)

    @property
    def own(self):
        return h0(1.0)

    @functools.cached_property
    def cached(self):
        return h0(1.0)


def within(*names):
    """Return an object whose class has only these members of `Wrapped`."""
    return type("Some", (), {"__module__": __name__, **{n: vars(Wrapped)[n] for n in names}})()


def enclosed(scale):
    class Scaled:
        def __call__(self, loss):
            return loss * scale

    return Scaled()


def with_remembered(loss):
    return remembered(loss)


def with_partial(loss):
    return halved(loss)


def with_rings(loss):
    return [ring(loss) for ring in RINGS["a"]]


def with_strength(loss):
    return loss * STRENGTH.value


def with_own(loss):
    return OWN(loss)


def with_critic(loss):
    return CRITIC(loss)


@pytest.mark.parametrize(
    "part",
    [
        h4, ring, with_remembered, with_partial, with_rings, with_strength, with_critic,
        Critic(), within("static"), within("of_class"), within("own"), within("cached"),
        {h4, h2}, {"a": {h4}}, Weighed(Weighed(h4)).__call__,
    ],
)  # fmt: skip
def test_functions_are_followed_to_the_end_through_whatever_holds_them(monkeypatch, part):
    before = described(part)
    assert described(part) == before
    monkeypatch.setattr(h0, "__defaults__", (3.0,))
    assert described(part) != before


def replaced(name, value):
    return lambda patch: patch.setattr(sys.modules[__name__], name, value)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (with_rings, lambda patch: patch.setitem(RINGS, "a", [h0, halved])),
        (with_partial, replaced("halved", functools.partial(h0, scale=0.25))),
        (with_strength, replaced("STRENGTH", Strength(2.0))),
        (with_own, replaced("OWN", Weighed(2.0))),
        (with_critic, lambda patch: patch.setattr(CRITIC.layer[0].bias, "data", torch.ones(2))),
        (with_critic, lambda patch: patch.setattr(CRITIC.layer[1], "p", 0.25)),
        (with_critic, lambda patch: patch.setattr(CRITIC, "_gain", 3.0)),
        (Bare, lambda patch: patch.setattr(Bare.__init__, "__defaults__", ((Strength(2.0),),))),
    ],
)
def test_constants_count_whatever_they_are_made_of(monkeypatch, part, change):
    before = described(part)
    assert described(part) == before
    change(monkeypatch)
    assert described(part) != before


def test_values_that_are_learned_are_those_of_states():
    """A network with random initial values that is then trained resumes from a state."""
    critics = [Critic(), Critic()]
    one, other = (described(Weighed(critic), learns=True) for critic in critics)
    assert is_same_code(one, other)
    assert not is_same_code(*map(described, map(Weighed, critics)))
    for critic in critics:
        critic.layer[0].bias.requires_grad_(requires_grad=False)
    one, other = (described(Weighed(critic), learns=True) for critic in critics)
    assert not is_same_code(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (enclosed(1.0), enclosed(2.0)),
        (Slotted(1.0), Slotted(2.0)),
        (Weighed(torch.float16), Weighed(torch.float32)),
        (Weighed({1: 2}), Weighed({"1": 2})),
        ({enclosed(1.0), enclosed(3.0)}, {enclosed(2.0), enclosed(3.0)}),
    ],
)
def test_parts_are_told_apart_by_what_they_hold(one, other):
    assert described(one) != described(other)


def test_the_order_in_which_a_set_is_gone_through_does_not_count():
    """A set is iterated by addresses, which differ between processes."""
    held = [enclosed(float(scale)) for scale in range(20)]
    one, other = (Weighed({Kept(part) for part in order}) for order in (held, held[::-1]))
    assert is_same_code(described(one), described(other))


class Kept:
    """An object in a set, at a different address each time."""

    def __init__(self, part):
        self.part = part.__call__


@pytest.fixture
def settings_module(tmp_path, monkeypatch):
    """The user's own modules `cfg` and `cfg.more`, with settings in them."""
    made = ModuleType("cfg"), ModuleType("cfg.more")
    for module in made:
        module.__file__ = str(tmp_path / "cfg" / "__init__.py")
        monkeypatch.setitem(sys.modules, module.__name__, module)
    made[0].more = made[1]
    made[0].scale, made[0].other, made[0].calls, made[1].gamma = 1.0, 1.0, 0, 1.0
    monkeypatch.setattr(sys.modules[__name__], "cfg", made[0], raising=False)
    return made[0]


def with_module(loss):
    cfg.calls += 1  # noqa: F821 - the fixture sets it
    cfg.last = loss  # noqa: F821
    return loss * cfg.scale * cfg.more.gamma  # noqa: F821


def with_module_around(cfg):
    def weight(loss):
        return loss * cfg.scale * cfg.more.gamma

    return weight


@pytest.mark.parametrize("is_around", [False, True])
def test_what_is_read_of_the_users_other_modules_counts(settings_module, monkeypatch, is_around):
    part = with_module_around(settings_module) if is_around else with_module
    before = described(part)
    with_module(1.0)
    monkeypatch.setattr(settings_module, "other", 2.0)
    assert is_same_code(before, described(part))
    for module, name in ((settings_module, "scale"), (settings_module.more, "gamma")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 2.0)
            assert not is_same_code(before, described(part))


@pytest.mark.parametrize("module", [torch, np, logging])
def test_a_module_around_a_function_is_known_by_its_name(module, monkeypatch):
    """Inspecting torch failed, and numpy's order differs in each process."""

    def weight(loss):
        return module.ones_like(loss)

    before = described(weight)
    assert "failed" not in before
    monkeypatch.setattr(module, "__doc__", "of another version")
    assert is_same_code(before, described(weight))
    assert not is_same_code(described(Weighed(module)), described(Weighed(sys)))


def test_a_name_that_was_not_assigned_around_a_function_is_passed_over():
    def weight(loss):
        return missing(loss)

    if weight is None:
        missing = h0
    assert described(weight) == described(weight)
