"""A drop-in for the sd-scripts command of the same name; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.metadata_tools import prepare_buckets_latents

if __name__ == "__main__":
    prepare_buckets_latents()
