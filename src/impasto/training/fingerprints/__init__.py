"""What a saved state has to agree with before it is resumed: model, data, settings, code."""
