"""Benchmarks: ratios measured in one run, never asserted; RESULTS.md has the latest."""
