"""Executors for a dataset's stages: threads and processes of this machine, or Ray Data.

A stage is a callable from a batch of items to a batch of results.
"""
