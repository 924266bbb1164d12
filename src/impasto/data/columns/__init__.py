"""Tables read by column: what is remembered of images on disk, and tables of others.

Arrow files in folders called `<name>.table`, to which rows are appended while work is done, and
single values of Parquet and Arrow tables. Nothing here knows what an image is.
"""
