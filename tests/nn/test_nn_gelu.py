"""GELU of compiled inference steps: torch's, within float32's rounding."""

import math

import pytest
import torch
from torch.nn import functional as F

from routespace.nn.kernels.gelu import gelu

NEAR = 3e-7  # for numbers up to 1; of greater ones, that share of them


@torch.no_grad()
def test_as_exact_as_float32():
    near, far = torch.linspace(-1e-3, 1e-3, 2001), torch.tensor([1e30, -1e30])
    x = torch.cat([torch.linspace(-40, 40, 400_001), near, far])
    exact = F.gelu(x.double())
    assert ((gelu(x).double() - exact).abs() <= NEAR * x.double().abs().clamp(min=1)).all()


@torch.no_grad()
def test_far_from_zero_it_is_the_number_or_nothing():
    far = torch.tensor([6.0, 12.0, 1e4, math.inf])
    assert torch.equal(gelu(far), far)
    assert (gelu(-far[:-1]) == 0).all()
    assert gelu(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_torchs(dtype):
    x = torch.linspace(-4, 4, 101, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(gelu(x), F.gelu(x))


def test_autograd_takes_torchs():
    x = torch.linspace(-4, 4, 101, requires_grad=True)
    assert torch.equal(torch.autograd.grad(gelu(x).sum(), x)[0], torch.autograd.grad(F.gelu(x).sum(), x)[0])
