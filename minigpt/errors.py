"""Exceptions that several parts of the package raise."""


class UsageError(ValueError):
    """The request cannot be fulfilled however often it is tried; the command line exits with status 2."""


class CorpusError(ValueError):
    """A text that cannot be used: the message names it, what is wrong with it and what to do."""
