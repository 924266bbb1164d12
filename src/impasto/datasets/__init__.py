"""Finds, splits, plans, batches and encodes the dataset that settings describe."""
