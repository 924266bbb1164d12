"""sd-scripts' command line for fine-tuning; see docs/guide/sd-scripts.md."""

from impasto.sdscripts.fine_tune import main

if __name__ == "__main__":
    main()
