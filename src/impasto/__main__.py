"""Entry point of `python -m impasto`, for launchers that start modules."""

from impasto.cli.main import main

if __name__ == "__main__":
    main()
