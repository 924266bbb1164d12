"""Garbage is collected less often while large packages are imported, and as usual afterwards."""

import gc
import sys

import pytest

from impasto.cli import imports


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A large package that records how often garbage is collected during its import."""
    (tmp_path / "large.py").write_text("import gc\nthreshold = gc.get_threshold()\n")
    (tmp_path / "large_and_broken.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "PACKAGES", {"large": "Large", "large_and_broken": "Broken"})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    imports.show_slow_imports()
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)
    sys.modules.pop("large", None)


def test_garbage_is_looked_for_less_often_while_importing(package):
    """Half a million objects are created, and nearly all stay alive."""
    import large

    assert large.threshold == (imports.COLLECTED_FROM, *package[1:])
    assert gc.get_threshold() == package


def test_it_is_looked_for_as_before_when_an_import_fails(package):
    """Callers that continue without the package still need garbage collection."""
    with pytest.raises(RuntimeError, match="broken"):
        import large_and_broken  # noqa: F401

    assert gc.get_threshold() == package


@pytest.mark.parametrize("asked", [0, 100_000])
def test_who_wants_it_even_less_often_is_heard(package, asked):
    """0 means never."""
    gc.set_threshold(asked, 10, 10)
    import large

    assert large.threshold == (asked, 10, 10) == gc.get_threshold()
