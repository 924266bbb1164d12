"""Runs in an object store: trained in a local folder, and uploaded to the store meanwhile.

A run whose `output_dir` is a URL is written into a working folder below the folder for copies, as
any run is, with the same atomicity. Complete files in it are uploaded by a thread (`mirror.py`,
`sending.py`), in an order in which a listing never shows anything incomplete (`contents.py`).
`ownership.py` prevents two machines from writing one run, `fetching.py` downloads a run or a model,
and `run_in_store.py` combines these for training.
"""
