import ast
from pathlib import Path

import minigpt


def test_every_public_name_can_be_had_and_is_the_one_that_type_checkers_see() -> None:
    tree = ast.parse(Path(minigpt.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(seen) == set(minigpt.__all__) - {"__version__", "register"}
    for name, module in seen.items():
        assert getattr(minigpt, name).__module__ == module


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    assert not hasattr(minigpt, "MiniGTP")
