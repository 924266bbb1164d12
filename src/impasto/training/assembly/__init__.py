"""Puts a session together: the base model with encoded images, what learns, and all the rest."""
