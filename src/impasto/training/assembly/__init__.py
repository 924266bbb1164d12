"""Builds a session: the base model, the encoded images, the trained network and all other parts."""
