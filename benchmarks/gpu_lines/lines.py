"""All lines, in the order of their worth: what a short time leaves out is the end of this list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from gpu_lines import inference, latency, training
from gpu_lines.line import Row, Setting

LINES: Mapping[str, Callable[[Setting], list[Row]]] = {
    "dense": inference.dense,
    "routing": inference.routing,
    "graphs": inference.graphs,
    "training": training.path,
    "supernet": training.supernet,
    "swin": inference.swin,
    "latency": latency.table,
    "routing_256": partial(inference.routing, batch=256),
    "whole": inference.whole,
}
