"""The module `os` as Windows names it, for one module of ours at a time."""

import os


class WindowsOs:
    """`os` under the name "nt"; the real one is left as it is, since pytest asks it too."""

    name = "nt"

    def __getattr__(self, attribute):
        return getattr(os, attribute)
