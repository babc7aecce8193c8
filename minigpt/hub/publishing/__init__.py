"""A folder to the Hub, with its card."""
