"""The dataset of some settings: found, split, planned, batched and encoded."""
