"""What tests of the workflow share: a supernet that trains in a second, and what networks answer."""

import torch
from torch import Tensor

TINY = [
    *("data.train_size=64", "data.val_size=32", "data.test_size=50", "train.batch_size=32", "train.epochs=1"),
    *("train.warmup_epochs=0", "grid.layers=2", "grid.embed_layers=all", "train.device=cpu"),
]


@torch.no_grad()
def logits(net: torch.nn.Module, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(2, K) of two random images of a size."""
    return net(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))).logits
