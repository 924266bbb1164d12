"""The studio: Impasto in a browser.

A small web server over run directories (`app.py`), which computes nothing and imports no torch.
What computes is a process of its own, started as `python -m impasto ...` (`run_processes.py`);
ending the studio ends none of them, and starting it again finds them all, because everything that
it shows is read from run directories. Who may ask, and for which files, is decided in `guard.py`
and `folders.py`; pages are templates rendered by the server, with htmx for what changes in place.

Needs the extra `studio`.
"""
