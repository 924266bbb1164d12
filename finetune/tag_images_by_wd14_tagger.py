"""A drop-in for the sd-scripts command of the same name; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.annotation_tools import tag_images_by_wd14_tagger

if __name__ == "__main__":
    tag_images_by_wd14_tagger()
