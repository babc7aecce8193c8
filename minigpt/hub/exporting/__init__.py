"""A model in other formats."""
