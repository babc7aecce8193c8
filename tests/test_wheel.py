"""Claims about what people install: the wheel, built from the source distribution, works where there is no source."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TEXT = "".join(f"FIRST VOICE:\nSay {number} and say it well.\n\nSECOND VOICE:\nI say it.\n\n" for number in range(99))


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that sees nothing of this process's import path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # A pipe has the locale's encoding otherwise, and a sample may hold any character.
    environment["PYTHONUTF8"] = "1"
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without isolation, so that nothing is downloaded: the [dev] extra has the build backend."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT, cwd=dist)
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that holds the wheel, and finds its dependencies in this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    places = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", places))
    # A folder named by a .pth file comes last, and its own .pth files, an editable minigpt's among them, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    folder = Path(sysconfig.get_path("scripts", "venv", places))
    python = folder / f"python{sysconfig.get_config_var('EXE') or ''}"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    return folder


@pytest.fixture(scope="module")
def trained(scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ten steps by the installed command leave, in a folder that is not the source's."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "voices.txt").write_text(TEXT, encoding="utf-8")
    run(scripts / "minigpt", "train", "--data", "voices.txt", "--max_steps", "10", "--output_dir", "run", cwd=folder)
    return folder / "run"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "minigpt"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert b"The MiniGPT authors" in archive.read(licence)
    assert names == wanted
    assert {"minigpt/py.typed", "minigpt/training/data/plays.txt"} <= names


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
    assert metadata["Name"] == "minigpt-hf"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert "transformers<6,>=5.23" in metadata.get_all("Requires-Dist")


def test_the_installed_package_is_the_wheels(scripts: Path, tmp_path: Path) -> None:
    code = "import minigpt; from importlib.resources import files; print(minigpt.__file__, minigpt.__version__); \
assert files('minigpt').joinpath('py.typed').is_file(); \
assert files('minigpt.training.data').joinpath('plays.txt').stat().st_size >= 400_000"
    location, version = run(scripts / "python", "-c", code, cwd=tmp_path).split()
    assert scripts.parent in Path(location).parents
    assert run(scripts / "minigpt", "--version", cwd=tmp_path).split() == ["minigpt", version]


def test_the_installed_command_trains(trained: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "loss.png"):
        assert (trained / name).stat().st_size > 0
    described = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert "voices" in json.dumps(described)


def test_what_the_installed_command_trained_opens_and_writes(scripts: Path, trained: Path, tmp_path: Path) -> None:
    sample = run(scripts / "minigpt", "generate", trained, "--prompt", "FIRST", "--max_new_tokens", "20", cwd=tmp_path)
    assert sample.startswith("FIRST")
    assert len(sample.rstrip("\n")) <= len("FIRST") + 20
    assert set(sample) <= set(TEXT)
