"""A drop-in for the sd-scripts command of the same name; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.annotation_tools import make_captions_by_git

if __name__ == "__main__":
    make_captions_by_git()
