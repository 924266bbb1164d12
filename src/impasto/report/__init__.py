"""Self-contained HTML reports on runs, datasets, comparisons and evaluations, and model cards."""
