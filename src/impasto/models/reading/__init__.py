"""Opens models in all their forms and identifies them, without building networks."""
