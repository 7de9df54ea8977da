"""What all tests share."""

import pytest
import torch
from devices import DEVICES


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Each device that there is, with exact products."""
    place = torch.device(request.param)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield place
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
