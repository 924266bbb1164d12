"""How a run begins, goes on and ends: checks, folders, stores, requests, messages."""
