"""A drop-in for the sd-scripts command of the same name; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.metadata_tools import merge_dd_tags_to_metadata

if __name__ == "__main__":
    merge_dd_tags_to_metadata()
