"""Runs in an object store: trained in a folder of this machine, and sent to the store meanwhile.

A run whose `output_dir` is a URL is written into a working folder below the folder for copies, as
any run is, with the same atomicity. What is finished in it is put into the store by a thread
(`mirror.py`, `sending.py`), in an order in which a listing never shows a half of something
(`contents.py`). `ownership.py` keeps two machines from writing one run, `fetching.py` brings a run
or a model back to a machine, `run_in_store.py` puts these together for whoever trains.
"""
