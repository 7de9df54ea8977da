"""All lines, in the order of their worth: what a short time leaves out is the end of this list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from gpu_lines import inference, latency, training
from gpu_lines.line import Row, Setting

Line = Callable[[Setting], list[Row]]


def eager(line: Line) -> Line:
    """A line without its compiled runs: what they take minutes to compile for is then measured in any case."""
    return lambda setting: line(replace(setting, compiled=False))


LINES: Mapping[str, Line] = {
    "dense": inference.dense,
    "routing": inference.routing,
    "graphs": inference.graphs,
    "training": eager(training.path),
    "supernet": eager(training.supernet),
    "swin": inference.swin,
    "latency": latency.table,
    "training_compiled": training.path,
    "supernet_compiled": training.supernet,
    "routing_256": partial(inference.routing, batch=256),
    "whole": inference.whole,
}
