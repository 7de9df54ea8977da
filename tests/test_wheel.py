"""The wheel: everything under routespace/, each module once, the recipes inside, and it runs from there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "runs", "wheels", "*.egg-info", "__pycache__", "demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of this checkout, so that no build folder is left in it."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "source", symlinks=True, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(place / "wheels"), str(place / "source")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = (place / "wheels").glob("*.whl")
    return found


def names_in(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_nothing_lands_outside_the_package(wheel):
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"routespace"}


def test_each_module_is_there_once(wheel):
    source = wheel.parents[1] / "source"
    inner = [path for path in source.glob("routespace/*") if path.is_dir() and not path.is_symlink()]
    linked = [path for part in ("search", "recipes", "cli") for path in source.glob(f"routespace/{part}/*.py")]
    sources = [*source.glob("routespace/*.py"), *linked, *(path for part in inner for path in part.rglob("*.py"))]
    wanted = sorted(path.relative_to(source).as_posix() for path in sources)
    found = sorted(name for name in names_in(wheel) if name.endswith(".py"))
    assert found == wanted
    for part in ("search", "recipes", "cli"):
        assert f"routespace/{part}/__init__.py" in found
        assert not any(name.startswith(f"routespace/{part}/{part}/") for name in found)


def test_data_is_inside(wheel):
    found = set(names_in(wheel))
    recipes = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
    assert recipes
    assert {f"routespace/recipes/{name}" for name in recipes} <= found
    assert "routespace/py.typed" in found
    assert any(name.endswith("licenses/LICENSE") for name in found)
    entry = next(name for name in found if name.endswith("entry_points.txt"))
    assert "routespace = routespace.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()


def test_it_runs_from_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import routespace, routespace.cli, routespace.search, routespace.recipes as r\n"
        "print(routespace.__file__)\nprint('digits_tiny' in r.recipe_names())"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    file, listed = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert listed == "True"
