"""Stores arrays by key in shards, on disk or in an object store; both caches are built on it."""
