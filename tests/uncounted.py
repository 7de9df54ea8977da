"""Where nobody counts lines: before Python 3.12 that slows down all Python, and some libraries are nothing else.

Of a test's lines and ours, those alone are not counted that run inside what a library does: a network's while it
is exported.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest

IMPORTED = "torch._dynamo", "torchvision", "torchmetrics", "timm", "accelerate", "scipy.signal", "onnxscript"
CALLED = (
    ("torch.export", "export"),
    ("torch.export", "load"),
    ("torch.onnx", "export"),
    ("matplotlib.figure", "Figure.savefig"),
)


@contextmanager
def uncounted() -> Iterator[None]:
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


def import_uncounted() -> None:
    """Import what each whole run needs, if lines are counted."""
    if sys.gettrace() is not None:
        with uncounted():
            for name in IMPORTED:
                importlib.import_module(name)


def call_uncounted(patch: pytest.MonkeyPatch) -> None:
    """From now on, what libraries do for long in Python is not counted."""
    for module, name in CALLED:
        owner: Any = importlib.import_module(module)
        *owners, last = name.split(".")
        for each in owners:
            owner = getattr(owner, each)
        patch.setattr(owner, last, without_counting(getattr(owner, last)))


def without_counting(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def called(*args: Any, **named: Any) -> Any:
        with uncounted():
            return call(*args, **named)

    return called
