"""Object stores: the only place that imports fsspec.

Places are paths (`impasto.remote_paths`). Local paths never come here.
"""
