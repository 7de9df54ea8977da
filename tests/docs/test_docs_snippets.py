"""README and docs: Python blocks run, quick bash blocks run, links and anchors lead somewhere, lines are short.

Python blocks of one file run in one namespace, from top to bottom, beside a bundle `small` and a folder `photos`.
Bash blocks run where the fence says `bash quick`, and those of `bash slow` after them in a slow test: their lines
that start with `routespace`.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tiny_grid import TINY_GRID
from typer.main import get_command
from typer.testing import CliRunner

from routespace import Architecture, Card, GridSpec, RoutingGrid, TaskNet, file_names, save_bundle
from routespace.preprocess import Preprocess, preprocess_to_json

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|src=\")([^)#\s\"]*)#?([^)\s\"]*)[)\"]")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *fences: str) -> list[str]:
    """The code blocks of a page whose fence line is one of `fences`."""
    return [code for fence, code in FENCE.findall(page.read_text()) if fence.strip() in fences]


def anchors(page: Path) -> list[str]:
    """The names that GitHub gives a page's headings: in small letters, hyphens for spaces, no punctuation."""
    names: list[str] = []
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        text = re.sub(r"\]\([^)]*\)", "]", heading).lower()
        names.append(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}-{number}" if number else name for name, number in zip(names, before, strict=True)]


def leaves(command, path=()):
    """Each command that does something, with the words that call it."""
    for name, each in getattr(command, "commands", {}).items():
        yield from leaves(each, (*path, name))
    if path and not hasattr(command, "commands"):
        yield path, command


def what_pages_speak_of(folder: Path) -> None:
    """A bundle called `small`, and some photos."""
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    data = preprocess_to_json(Preprocess(size=(32, 32)), [f"class {number}" for number in range(10)])
    save_bundle(net, folder / "small", Card.of(net), texts={file_names.PREPROCESS: json.dumps(data)})
    for name in ("cat/0.jpg", "dog/1.webp"):
        (folder / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (60, 40), "green").save(folder / "photos" / name)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what_pages_speak_of(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


QUICK = [(page, ("bash quick",)) for page in PAGES if blocks(page, "bash quick")]
ALL = [(page, ("bash quick", "bash slow")) for page in PAGES if blocks(page, "bash slow")]


@pytest.mark.parametrize(
    ("page", "fences"),
    [
        *(pytest.param(*each, id=name_of(each[0])) for each in QUICK),
        *(pytest.param(*each, id=f"{name_of(each[0])}, all", marks=pytest.mark.slow) for each in ALL),
    ],
)
def test_commands_run(page, fences, tmp_path, monkeypatch):
    from routespace.cli.app import app

    monkeypatch.chdir(tmp_path)
    for code in blocks(page, *fences):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["routespace"]:
                continue
            if ">" in words:
                words = words[: words.index(">")]
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, (line, result.output, result.exception)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page):
    lines = page.read_text().splitlines()
    long = [
        f"{n}: {line[:40]}…"
        for n, line in enumerate(lines, 1)
        if len(line) > 128 and not line.startswith(("|", "<img"))
    ]
    assert not long, long


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_options_that_pages_give_them(page):
    from routespace.cli.app import app

    commands = {" ".join(path): command for path, command in leaves(get_command(app))}
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))]
    calls = "\n".join([*spans, *blocks(page, "bash", "bash quick", "bash slow")])
    for name, rest in re.findall(rf"\broutespace ({'|'.join(commands)})\b([^#\n]*)", calls.replace("\\\n", " ")):
        allowed = {option for param in commands[name].params for option in (*param.opts, *param.secondary_opts)}
        asked = set(re.findall(r"(?<=[ \[(])--[a-z][a-z-]*", rest))
        assert asked <= allowed, (name, asked - allowed)


def test_each_command_is_in_the_readme():
    from routespace.cli.app import app

    text = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert f"`routespace {command.name}" in text, command.name
