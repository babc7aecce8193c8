"""Claims about the house: which room may import which, what a file may hold, what is pinned and what is promised."""

import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distributions, entry_points, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.pins import lines, package_of, pins

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minigpt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# A room imports itself and the rooms after it.
ROOMS = ["cli", "training", "hub", "tokenization", "modeling_minigpt", "errors"]
SOURCES = sorted(PACKAGE.rglob("*.py"))
# The files that are copied into a Hub repository, and run there without the package.
COPIED = sorted(
    path
    for path in (*PACKAGE.glob("modeling_minigpt/*.py"), PACKAGE / "tokenization" / "tokenization_minigpt.py")
    if path.name != "__init__.py"
)
BROUGHT_ALONG = {"huggingface_hub", "numpy", "tokenizers", "torch", "transformers"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Full dotted names, of lazy imports too, not those for types alone; `import minigpt` counts by what is used."""
    package = ["minigpt", *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    types_only = {node for block in blocks for node in block.body}
    for node in ast.walk(tree):
        if node in types_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "minigpt")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from minigpt import hub` imports a room, `from minigpt.hub import weights` a file of it.
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "minigpt":
            yield f"minigpt.{node.attr}"


PINS = pins()
EXTRAS = {
    name: [Requirement(requirement) for requirement in requirements]
    for name, requirements in PROJECT["optional-dependencies"].items()
}
REQUIREMENTS = [
    *(Requirement(requirement) for requirement in PROJECT["dependencies"]),
    *(one for requirements in EXTRAS.values() for one in requirements if one.name != PROJECT["name"]),
]


@pytest.mark.parametrize("path", [path for path in SOURCES if room_of(path) in ROOMS], ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    allowed = ROOMS[ROOMS.index(room_of(path)) :]
    for module in imported_modules(path):
        if module.split(".")[0] == "minigpt":
            assert module.split(".")[1] in allowed, f"{name_of(path)} imports {module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    imports = {
        name: {module for used in imported_modules(path) for module in (used, used.rpartition(".")[0])} & modules.keys()
        for name, path in modules.items()
    }
    # Take away again and again what imports nothing that is left: what stays is in a circle or imports one.
    while free := {name for name, used in imports.items() if not used & imports.keys() - {name}}:
        imports = {name: used for name, used in imports.items() if name not in free}
    assert not imports


def test_no_two_classes_have_one_name() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, number in names.items() if number > 1] == []


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in SOURCES} - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("path", COPIED, ids=name_of)
def test_copied_files_need_only_flat_siblings_and_what_transformers_brings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    siblings = {other.stem for other in path.parent.glob("*.py")}
    relative = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.level]
    for node in relative:
        assert node.level == 1, f"line {node.lineno} imports from above"
        assert node.module in siblings, f"line {node.lineno} imports no sibling by its name"
    others = {module.split(".")[0] for module in imported_modules(path)} - {"minigpt"}
    assert not others - BROUGHT_ALONG - set(sys.stdlib_module_names)
    absolute = re.findall(r"^\s*(?:import|from)\s+minigpt\b", text, re.MULTILINE)
    assert not absolute, "the package is not there"
    # transformers finds the files to copy by these patterns, in the text: a docstring's example would count.
    found = re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.MULTILINE)
    found += re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE)
    assert sorted(found) == sorted(str(node.module) for node in relative)


def test_no_file_is_named_for_nothing() -> None:
    names = {"utils", "util", "helpers", "common", "misc"}
    assert not [name_of(path) for path in SOURCES if path.stem in names]


def test_the_command_line_imports_only_the_standard_library_until_a_command_runs() -> None:
    tree = ast.parse((PACKAGE / "cli" / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
    assert {str(module).split(".")[0] for module in modules} <= set(sys.stdlib_module_names)


def test_the_version_is_the_projects() -> None:
    from minigpt import __version__

    assert __version__ == version("minigpt-hf") == PROJECT["version"]


def test_the_changelog_names_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in (PROJECT["version"], "Unreleased")
    assert PROJECT["version"] in headings


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="minigpt")
    assert command.value == "minigpt.cli:main"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])
    floors = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    assert floors, "has no lower bound"


def test_nothing_else_is_pinned_without_a_reason() -> None:
    direct = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    assert [line for line in lines() if package_of(line) not in direct and not line.partition("#")[2].strip()] == []


def test_what_is_imported_is_required() -> None:
    imported = {module.split(".")[0] for path in SOURCES for module in imported_modules(path)}
    third_party = imported - set(sys.stdlib_module_names) - {"minigpt"}
    # datasets requires pyarrow, torch requires jinja2, and all of these libraries show their progress with tqdm.
    assert third_party - {"jinja2", "pyarrow", "tqdm"} <= {
        canonicalize_name(r.name).replace("-", "_") for r in REQUIREMENTS
    }


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only make's .venv is set up with the constraints")
def test_the_installed_versions_are_the_pinned_ones() -> None:
    # A local part (torch 2.13.0+cpu) says for which device a version was built.
    installed = {canonicalize_name(one.name): Version(Version(one.version).public) for one in distributions()}
    both = installed.keys() & PINS.keys()
    assert both
    assert {name: installed[name] for name in both} == {name: PINS[name] for name in both}


def test_the_extra_all_is_every_extra_but_the_developers_and_those_that_disturb_others() -> None:
    (everything,) = EXTRAS["all"]
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all", "dev", "quantize", "deepspeed"}


def test_pre_commit_uses_the_pinned_ruff() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    named = re.findall(r"ruff==([\d.]+)", hooks)
    assert set(named) == {str(PINS["ruff"])}


def test_tests_cannot_reach_the_hub_nor_the_persons_caches() -> None:
    code = """
import urllib.error, urllib.request
from pathlib import Path
from huggingface_hub import constants
assert constants.ENDPOINT.startswith("http://127.0.0.1:"), constants.ENDPOINT
print(Path(constants.HF_HUB_CACHE))
for address in ("http://example.org", constants.ENDPOINT):
    try:
        urllib.request.urlopen(address, timeout=5)
    except urllib.error.URLError as error:
        assert isinstance(error.reason, ConnectionRefusedError), error
    else:
        raise AssertionError(f"{address} answered")
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert Path(tempfile.gettempdir()) in Path(printed.strip()).parents


@pytest.mark.parametrize("path", [*SOURCES, PACKAGE / "training" / "data" / "plays.txt"], ids=name_of)
def test_lines_end_in_line_feeds(path: Path) -> None:
    assert b"\r" not in path.read_bytes()
