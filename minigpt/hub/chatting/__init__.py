"""Talking with a model, and text that appears as it is made."""
