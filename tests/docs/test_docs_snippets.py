"""README and docs: Python blocks run, quick bash blocks run, links lead somewhere.

Python blocks of one file run in one namespace, from top to bottom, beside a bundle `small` and a folder `photos`.
Bash blocks run where the fence says `bash quick`, and only their lines that start with `routespace`.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tiny_grid import TINY_GRID
from typer.testing import CliRunner

from routespace import Architecture, Card, GridSpec, RoutingGrid, TaskNet, file_names, save_bundle
from routespace.preprocess import Preprocess, preprocess_to_json

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def blocks(page: Path, *fences: str) -> list[str]:
    """The code blocks of a page whose fence line is one of `fences`."""
    return [code for fence, code in FENCE.findall(page.read_text()) if fence.strip() in fences]


def what_pages_speak_of(folder: Path) -> None:
    """A bundle called `small`, and some photos."""
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    data = preprocess_to_json(Preprocess(size=(32, 32)), [f"class {number}" for number in range(10)])
    save_bundle(net, folder / "small", Card.of(net), texts={file_names.PREPROCESS: json.dumps(data)})
    for name in ("cat/0.jpg", "dog/1.webp"):
        (folder / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (60, 40), "green").save(folder / "photos" / name)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what_pages_speak_of(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash quick")], ids=lambda page: page.name)
def test_quick_commands_run(page, tmp_path, monkeypatch):
    from routespace.cli.app import app

    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "bash quick"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["routespace"]:
                continue
            if ">" in words:
                words = words[: words.index(">")]
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, (line, result.output, result.exception)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_each_command_is_in_the_readme():
    from routespace.cli.app import app

    text = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert f"`routespace {command.name}" in text, command.name
