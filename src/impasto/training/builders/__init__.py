"""Builds a run's parts from its settings: model, method, text, objective, schedule, processes."""
