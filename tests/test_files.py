"""Files: whole or not at all, strict JSON, and one line for whatever goes wrong."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from routespace.errors import BundleError, SpecError
from routespace.files import (
    ASKED,
    FILE_MODE,
    json_text,
    read_json,
    replaced,
    replaced_folder,
    require_folder,
    require_place,
    undone,
    write_bytes,
    write_json,
    write_text,
)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(path, error):
    path.write_text("half")
    raise error


@pytest.mark.parametrize(("write", "content"), [(write_bytes, b"1\n"), (write_text, "1\n"), (write_json, 1)])
def test_every_writer_replaces_makes_parents_and_gives_one_mode(write, content, tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    for _ in range(2):
        write(path, content)
        assert path.read_bytes() == b"1\n"
    assert path.stat().st_mode & 0o777 == FILE_MODE
    assert left_in(path.parent) == ["file.json"]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_written_is_strict_json(wrong, tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, (wrong, 2.5)], "y": {"z": wrong}, "é": True})

    def refuse(word):
        raise AssertionError(word)

    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {"x": [1, [None, 2.5]], "y": {"z": None}, "é": True}
    assert json_text({"x": wrong}, indent=None) == '{"x": null}'


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_no_new_parents(error, tmp_path):
    old = tmp_path / "old.txt"
    old.write_text("old")
    for path in (old, tmp_path / "new" / "deep" / "new.txt"):
        with pytest.raises(error), replaced(path) as partial:
            fail_halfway(partial, error)
    assert old.read_text() == "old"
    assert left_in(tmp_path) == ["old.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_appears_whole_or_not_at_all(error, tmp_path):
    for name in ("first", "second"):
        with replaced_folder(tmp_path / "a" / "b") as partial:
            (partial / name).write_text(name)
    assert left_in(tmp_path / "a" / "b") == ["second"]
    for place in (tmp_path / "a" / "b", tmp_path / "c" / "d"):
        with pytest.raises(error), replaced_folder(place) as partial:
            fail_halfway(partial / "third", error)
    assert left_in(tmp_path / "a" / "b") == ["second"]
    assert left_in(tmp_path) == ["a"]


def test_an_error_inside_a_new_folder_names_the_place_that_was_asked_for(tmp_path):
    with pytest.raises(BundleError) as caught, replaced_folder(tmp_path / "net") as partial:
        write_text(partial / "x" / ("n" * 300), "too long a name")
    assert str(caught.value).startswith(f"{tmp_path / 'net'}: cannot be written (File name too long)")
    assert left_in(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of written files gives a real OSError in the middle of a write."""
    script = (
        "import resource, sys\n"
        "from routespace.files import write_bytes; from routespace.errors import BundleError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "for path in sys.argv[1:]:\n"
        "    try: write_bytes(path, bytes(10000))\n"
        "    except BundleError as error: print(error)\n"
    )
    old = tmp_path / "old"
    old.write_text("old")
    paths = [str(old), str(tmp_path / "made" / "new")]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == paths
    assert all("cannot be written (File too large)" in line for line in lines)
    assert old.read_text() == "old"
    assert left_in(tmp_path) == ["old"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_whose_work_fails_is_as_it_was(error, tmp_path):
    def work(folder):
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        fail_halfway(folder / "deep" / "a.txt", error)

    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "run"):
        with pytest.raises(error), undone(folder, unless=folder / "worth keeping"):
            work(folder)
    assert left_in(tmp_path) == ["empty"]
    assert left_in(tmp_path / "empty") == []
    with pytest.raises(error), undone(tmp_path / "run", unless=tmp_path / "run" / "deep"):
        work(tmp_path / "run")
    assert left_in(tmp_path / "run") == ["deep"]


def test_places_that_cannot_take_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "file" / "x", tmp_path / "folder", "/proc/x/y", "/dev/null"):
        for ask in (require_place, lambda path: write_text(path, "")):
            with pytest.raises(BundleError) as caught:
                ask(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == ["file", "folder"]


def test_asking_for_a_place_leaves_nothing(tmp_path):
    require_place(tmp_path / "a" / "b" / "c.json")
    (tmp_path / "there").write_text("mine")
    require_place(tmp_path / "there")
    assert left_in(tmp_path) == ["there"]
    assert (tmp_path / "there").read_text() == "mine"
    longest = tmp_path / ("n" * 255)
    require_place(longest)
    write_text(longest, "as long as a name may be")
    assert longest.read_text() == "as long as a name may be"
    for ask in (require_place, lambda path: write_text(path, "")):
        with pytest.raises(BundleError, match="File name too long"):
            ask(tmp_path / ("n" * 256))


def test_asking_for_a_place_makes_and_removes_no_folder_that_another_process_may_use(tmp_path, monkeypatch):
    seen = []
    whole = shutil.rmtree

    def look(folder, **options):
        seen.append(left_in(tmp_path))
        whole(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    require_place(tmp_path / "runs" / "a.json")
    require_folder(tmp_path / "runs")
    assert [[name.startswith(ASKED) for name in names] for names in seen] == [[True], [True]]
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("error", [BundleError, SpecError])
def test_what_cannot_be_read_is_one_line_with_the_way_on(content, error, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    for name, reason in (("a.json", "is not JSON"), ("b.json", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(error) as caught:
            read_json(tmp_path / name, wanted="a run's usage.json", error=error)
        line = str(caught.value)
        assert line.startswith(f"{tmp_path / name}: {reason}")
        assert line.endswith("; give a run's usage.json")
        assert "\n" not in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(BundleError, match="Permission denied"):
        write_text(tmp_path / "a", "")
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("step", ["rmtree", "rmdir"])
def test_an_interrupt_while_a_place_is_tidied_up_leaves_nothing(tmp_path, monkeypatch, step):
    owner = shutil if step == "rmtree" else Path
    whole, calls = getattr(owner, step), []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(owner, step, interrupted)
    with pytest.raises(KeyboardInterrupt), replaced(tmp_path / "a" / "b" / "c.json"):
        raise BundleError("the work failed")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert len(calls) > 1
