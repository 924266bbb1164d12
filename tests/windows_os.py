"""The module `os` with Windows' name, for one module of Impasto at a time, and junctions."""

import os
import stat
from pathlib import Path
from types import SimpleNamespace


class WindowsOs:
    """`os` under the name "nt"; the real module is unchanged, since pytest uses it too."""

    name = "nt"

    def __getattr__(self, attribute):
        return getattr(os, attribute)


def make_junction(link, target, monkeypatch):
    """Create a junction like `mklink /J`; elsewhere than on Windows, a symlink that looks like one.

    `Path.is_symlink` is false for it, its contents are visible, and removing it leaves the target.
    """
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
        return

    class JunctionOs(WindowsOs):
        def lstat(self, path):
            found = os.lstat(path)
            if not stat.S_ISLNK(found.st_mode):
                return found
            return SimpleNamespace(st_mode=stat.S_IFDIR, st_reparse_tag=0xA0000003)

    link.symlink_to(target, target_is_directory=True)
    monkeypatch.setattr("impasto.presence.os", JunctionOs())
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
