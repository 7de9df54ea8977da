"""Convolutions of whole patches by products: torch's own convolution is the oracle."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from routespace.nn.kernels.patches import FEW_PATCHES, convolved_tokens
from routespace.nn.packing.maps import as_map, as_tokens


@pytest.fixture
def convolutions(monkeypatch) -> list:
    """One entry for each call of torch's convolution."""
    calls, own = [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *args: (calls.append(1), own(*args))[1])
    return calls


def keys_conv(channels=6, side=2, **settings):
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, side, side, **settings).to(memory_format=torch.channels_last)


def tokens(images=2, hw=(4, 6), channels=6):
    return torch.randn(images, hw[0] * hw[1], channels)


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("hw", [(4, 8), (8, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_product_is_the_convolution(side, hw, turned, convolutions):
    conv, x = keys_conv(side=side, bias=side > 1), tokens(hw=hw)
    if turned:  # weights as torch lays them out
        conv = conv.to(memory_format=torch.contiguous_format)
    expected = as_tokens(conv(as_map(x, hw)))
    convolutions.clear()
    torch.testing.assert_close(convolved_tokens(conv, as_map(x, hw)), expected)
    assert not convolutions


@torch.no_grad()
@pytest.mark.parametrize(
    "conv",
    [
        keys_conv(padding=1),
        nn.Conv2d(6, 6, 3, 2, 1),
        nn.Conv2d(6, 6, (2, 1), 2),
        nn.Conv2d(6, 6, 2, 2, groups=2),
        nn.Conv2d(6, 6, 2, 2, dilation=2),
        keys_conv(side=5),
        nn.Conv2d(6, 6, 2, 2).double(),
    ],
)
def test_others_are_convolved(conv, convolutions):
    x = tokens().to(conv.weight.dtype)
    expected = as_tokens(conv(as_map(x, (4, 6)))) if conv.kernel_size != (5, 5) else None
    convolutions.clear()
    if expected is None:  # larger than the map
        with pytest.raises(RuntimeError):
            convolved_tokens(conv, as_map(x, (4, 6)))
    else:
        torch.testing.assert_close(convolved_tokens(conv, as_map(x, (4, 6))), expected)
    assert len(convolutions) == 1


@torch.no_grad()
@pytest.mark.parametrize("images", [0, 2, FEW_PATCHES // 6 + 1])
def test_a_large_batch_and_an_empty_one_are_convolved(images, convolutions):
    found = convolved_tokens(keys_conv(), as_map(tokens(images), (4, 6)))
    assert found.shape == (images, 6, 6)
    assert bool(convolutions) == (images != 2)


def test_training_hooks_and_counters_are_given_the_convolution(convolutions):
    conv, x = keys_conv(), as_map(tokens(), (4, 6))
    convolved_tokens(conv, x).sum().backward()
    assert len(convolutions) == 1
    assert conv.weight.grad is not None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        convolved_tokens(conv, x)
    assert "convolution" in str(counter.get_flop_counts())
    heard = []
    conv.register_forward_hook(lambda *_: heard.append(1))
    with torch.no_grad():
        convolved_tokens(conv, x)
    assert heard == [1]
