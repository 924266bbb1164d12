"""The embedded default: a tiny trained model, a picture set in a style it does not know, a recipe."""
