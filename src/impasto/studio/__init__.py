"""The studio: Impasto in a browser.

A small web server over run directories (`app.py`), which computes nothing and imports no torch.
Computation runs in separate processes, started as `python -m impasto ...` (`run_processes.py`);
stopping the studio stops none of them, and restarting it finds them all, because everything that it
shows is read from run directories. `guard.py` decides which requests are allowed, and `folders.py`
which files can be shown. Pages are templates rendered by the server, with htmx for parts that
change in place.

Needs the extra `studio`.
"""
