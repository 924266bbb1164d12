"""Analyses of a run's models: mixtures with the base model, averages, learning-rate tests."""
