"""Opens models in all their forms and says what they are, without making networks of them."""
