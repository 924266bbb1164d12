"""Captions and tags for images: made by models, cleaned by rules, edited, and undone."""
