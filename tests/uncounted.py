"""Where nobody counts lines: before Python 3.12 that slows down all Python, and some libraries are nothing else.

Of a test's lines and ours, those alone are not counted that run inside what a library does: a network's while it
is exported.
"""

import importlib
import sys
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

import pytest

IMPORTED = (
    *("torch._dynamo", "torchvision", "torchmetrics", "timm", "accelerate", "scipy.signal", "onnxscript"),
    *("optuna", "segmentation_models_pytorch", "fvcore.nn"),
)
CALLED = (
    ("torch.export", "export"),
    ("torch.export", "load"),
    ("torch.onnx", "export"),
    ("matplotlib.figure", "Figure.savefig"),
    ("typer.main", "get_group"),
    ("sqlalchemy.orm", "Session.commit"),
    ("sqlalchemy.orm", "Session.flush"),
    ("sqlalchemy.orm", "Session.execute"),
    ("sqlalchemy.orm", "Query.all"),
    ("sqlalchemy.orm", "Query.first"),
    ("sqlalchemy.orm", "Query.one"),
    ("sqlalchemy.orm", "Query.one_or_none"),
)


def without_counting(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def called(*args: Any, **named: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return call(*args, **named)
        finally:
            sys.settrace(tracer)  # in the frame that stopped it, or it loses count of who called whom

    return called


@without_counting
def import_uncounted() -> None:
    """Import what each whole run needs."""
    for name in IMPORTED:
        importlib.import_module(name)


def call_uncounted(patch: pytest.MonkeyPatch) -> None:
    """From now on, what libraries do for long in Python is not counted."""
    for module, path in CALLED:
        *owners, name = path.split(".")
        owner = reduce(getattr, owners, importlib.import_module(module))
        patch.setattr(owner, name, without_counting(getattr(owner, name)))
