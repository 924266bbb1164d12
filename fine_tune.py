"""A drop-in for sd-scripts' fine_tune.py; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.drop_in import main

if __name__ == "__main__":
    main("fine_tune.py")
