"""What a model draws against real images: distances, similarities, copies, obedience to prompts."""
