"""Benchmarks: ratios measured in one run, never asserted. See RESULTS.md for the latest."""
