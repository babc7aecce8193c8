"""A model to the world and back."""
