"""A drop-in for sd-scripts' sdxl_train.py; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.drop_in import main

if __name__ == "__main__":
    main("sdxl_train.py")
