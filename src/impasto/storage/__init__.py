"""Object stores: the only package that imports fsspec.

Locations are paths (`impasto.remote_paths`). Local paths are never passed to this package.
"""
