"""A trained model and new text, or conversations, to a model that has learned them too."""
