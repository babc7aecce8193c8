"""Which function answers which request."""

import re
from collections.abc import Callable

ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = []


def route(pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers what answers requests whose `METHOD /path` is of this form; `{id}` stands for a repository's."""
    pattern = pattern.replace("{kind}", "(?P<kind>models|datasets|spaces)")
    pattern = pattern.replace("{id}", "(?P<id>[^/]+/[^/]+|[^/]+)")
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)

    def register(answer: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((re.compile(pattern), answer))
        return answer

    return register
