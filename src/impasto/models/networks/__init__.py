"""Networks built from a model's tensors, their attachments, and their offloading."""
