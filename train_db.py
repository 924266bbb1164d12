"""A drop-in for sd-scripts' train_db.py; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.drop_in import main

if __name__ == "__main__":
    main("train_db.py")
