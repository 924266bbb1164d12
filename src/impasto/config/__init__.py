"""The typed settings tree, and how it is read from TOML and `--set`. Imports no torch."""
