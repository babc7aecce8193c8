"""Exceptions that several parts of the package raise."""


class UsageError(ValueError):
    """The request cannot be fulfilled however often it is tried; the command line exits with status 2."""
