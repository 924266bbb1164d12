"""A drop-in for the sd-scripts command of the same name; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.metadata_tools import clean_captions_and_tags

if __name__ == "__main__":
    clean_captions_and_tags()
