"""The start, continuation and end of a run: checks, folders, stores, requests, messages."""
