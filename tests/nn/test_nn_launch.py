"""Launching Triton kernels: whichever variant Triton would run, without asking it again."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from routespace.nn.packing import launch as launching
from routespace.nn.packing.launch import launch, parts, power_of_two


class Variant:
    """A compiled kernel that tells what it is launched with."""

    def __init__(self, told):
        self.told = told

    def __getitem__(self, grid):
        return lambda *args: self.told.append(("again", grid[:3], args))


class Kernel:
    """A jitted kernel that tells what it is called with, and makes a variant each time."""

    def __init__(self):
        self.told = []

    def __getitem__(self, grid):
        def call(*args, **named):
            self.told.append(("first", grid, args, named))
            return Variant(self.told)

        return call


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launching, "CompiledKernel", Variant)
    monkeypatch.setattr(launching, "_variants", {})
    return Kernel()


def test_a_variant_is_launched_again_with_new_arguments(kernel):
    x, y = torch.zeros(8), torch.ones(8)
    launch(kernel, (3,), (x, 5, 1e-6), {"C": 4, "ADD": False}, num_warps=8)
    launch(kernel, (7, 2), (y, 6, 1e-5), {"C": 4, "ADD": False}, num_warps=8)
    first, again = kernel.told
    assert first == ("first", (3,), (x, 5, 1e-6), {"C": 4, "ADD": False, "num_warps": 8})
    assert again[:2] == ("again", (7, 2, 1))
    assert again[2][0] is y
    assert again[2][1:] == (6, 1e-5, 4, False)


def test_what_triton_compiles_for_is_told_apart(kernel):
    x, other = torch.zeros(8), Kernel()
    args, constants, options = (x, 5, 0.5), {"C": 4}, {"num_warps": 4}
    different = [
        (kernel, args, constants, options),
        (other, args, constants, options),
        (kernel, (x[1:], 5, 0.5), constants, options),  # an address that 16 does not divide
        (kernel, (x.double(), 5, 0.5), constants, options),
        (kernel, (x, 16, 0.5), constants, options),
        (kernel, (x, 1, 0.5), constants, options),
        (kernel, args, {"C": 8}, options),
        (kernel, args, constants, {"num_warps": 8}),
        (kernel, args, constants, {}),
    ]
    for _turn in range(2):
        for called, given, fixed, chosen in different:
            launch(called, (1,), given, fixed, **chosen)
    told = [call[0] for call in kernel.told]
    assert told == ["first"] * 8 + ["again"] * 8
    assert [call[0] for call in other.told] == ["first", "again"]


def test_what_makes_no_variant_is_called_each_time(kernel, monkeypatch):
    monkeypatch.setattr(launching, "CompiledKernel", int)  # as in the interpreter
    for _ in range(2):
        launch(kernel, (1,), (torch.zeros(2),), {})
    assert [call[0] for call in kernel.told] == ["first", "first"]


def test_parts_and_powers_of_two():
    assert [parts(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 1000, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 1024, 2048]
