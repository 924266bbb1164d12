"""Networks made of a model's tensors, what is attached to them, and where they wait."""
