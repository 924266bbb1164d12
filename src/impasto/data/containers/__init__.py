"""Files that hold many images each: tars, Parquet and Arrow tables, listed without unpacking."""
