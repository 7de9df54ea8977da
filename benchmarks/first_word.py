"""How long each command takes to say its first word, in a terminal: medians over several starts.

    python benchmarks/first_word.py

Each command runs in a pseudo-terminal of its own until its first byte comes, and is stopped then. A small run and
a bundle are made first. The errors are those that people meet most; they need no torch and should not wait for it.

Two times are told: by the clock, and of the processor, which is what the clock would say on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import pty
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = (sys.executable, "-m", "routespace.cli")
SMALL = {
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 8,
    "data.train_size": 32,
    "data.val_size": 16,
    "data.test_size": 16,
    "train.device": "cpu",
}
CHANGES = tuple(word for field, value in SMALL.items() for word in ("--set", f"{field}={value}"))
COMMANDS = {
    "--help": ("--help",),
    "train --help": ("train", "--help"),
    "build": ("build", "--layers", "24", "--max-down", "32"),
    "cost": ("cost", "dit_b2"),
    "recipes": ("recipes",),
    "data check": ("data", "check", "photos"),
    "train": ("train", "digits_tiny", *CHANGES, "--out", "again"),
    "train --from": ("train", "digits_tiny", *CHANGES, "--from", "small", "--out", "again"),
    "train --resume": ("train", "run", "--resume"),
    "search": ("search", "digits_tiny", *CHANGES, "--trials", "1", "--out", "study"),
    "evaluate": ("evaluate", "small"),
    "predict": ("predict", "small", "photos"),
    "extract": ("extract", "run", "-o", "part"),
    "verify": ("verify", "small", "--against", "run"),
    "export": ("export", "small", "-o", "files"),
    "profile": ("profile", "small", "-o", "table.json"),
    "demo": ("demo", "--quick", "--out", "demo"),
}
ERROR = "error"
ERRORS = {
    "an option that is not there": ("train", "digits_tiny", "--nosuch"),
    "a recipe that is not there": ("train", "nosuch"),
    "predict: no such bundle": ("predict", "nosuch", "photos"),
    "a field that is not there": ("train", "digits_tiny", "--set", "train.nosuch=1"),
    "a folder that is in use": ("train", "digits_tiny", "--out", "run"),
    "pictures that are not there": ("train", "digits_tiny", "--data", "nosuch", "--out", "again"),
    "evaluate: no such run": ("evaluate", "nosuch"),
    "extract: no such run": ("extract", "nosuch", "-o", "part"),
    "export: no such format": ("export", "small", "--format", "nosuch", "-o", "files"),
    "verify: no such bundle": ("verify", "nosuch", "--against", "run"),
    "search: no search section": ("search", "dit_b2_imagenet", "--set", "search=null"),
}


def first_word_s(
    arguments: tuple[str, ...], folder: Path, *, word: bytes = b"", most_s: float = 60.0
) -> tuple[float, float]:
    """Seconds until a command's first byte on a terminal, of the clock and the processor; it is ended then.

    With a `word`, until that is said: a status line does not count.
    """
    ours, theirs = pty.openpty()
    start = time.perf_counter()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = b""
    try:
        while time.perf_counter() - start < most_s:
            try:
                said += os.read(ours, 1)
                if said and word in said:
                    return time.perf_counter() - start, processor_s(process.pid)
            except BlockingIOError:
                time.sleep(0.002)
        return float("inf"), float("inf")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def processor_s(pid: int) -> float:
    """Seconds that a process has computed, by Linux's table."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def prepare(folder: Path) -> None:
    """A run, a bundle and a few pictures."""
    from PIL import Image

    for arguments in (("train", "digits_tiny", *CHANGES, "--out", "run"), ("extract", "run", "-o", "small")):
        subprocess.run([*PROGRAM, *arguments], cwd=folder, check=True, capture_output=True)
    for kind, colour in (("cat", "red"), ("dog", "blue")):
        for number in range(4):
            path = folder / f"photos/train/{kind}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(path)


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description="How long each command takes to say its first word.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="commands whose name has this word")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        errors = {f"{ERROR}, {name}": words for name, words in ERRORS.items()}
        for name, arguments in (COMMANDS | errors).items():
            if options.only not in name:
                continue
            times = []
            for _ in range(options.rounds):
                word = ERROR.encode() if name in errors else b""
                times.append(first_word_s(arguments, folder, word=word))
                for left in ("again", "study", "part", "files", "demo"):
                    subprocess.run(["rm", "-rf", str(folder / left)], check=True)
            clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name:36} {clock:6.2f} s   processor {processor:5.2f} s", flush=True)


if __name__ == "__main__":
    main()
