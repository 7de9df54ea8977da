"""What every result file says besides its numbers: the machine, the versions and the date."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from routespace.deploy.latency.device import this_device
from routespace.files import write_json


def record(path: Path, device: str, result: dict[str, Any]) -> None:
    """Write a result as JSON, with the `device` ('cpu', 'cuda') that it was measured on."""
    machine = {
        "device": this_device(torch.device(device), 1).name,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(path, result | machine)
