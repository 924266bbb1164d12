"""Columnar tables: caches of facts about images on disk, and access to tables from other programs.

The caches are Arrow files in folders named `<name>.table`, to which rows are appended during work.
Of other programs' Parquet and Arrow tables, single values are read. Nothing here is specific to
images.
"""
