"""What looks at a run's models beside or after it: mixtures, averages, learning rates to try."""
