"""Single components from the settings: base model, method, text, objective, schedule, processes."""
