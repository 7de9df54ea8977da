"""All Triton kernels against plain operations in Triton's interpreter, in one process of their own.

Once loaded, triton does not become an interpreter any more, and loading it takes as long as many of the checks.
"""

import importlib.util

import pytest
from triton_elsewhere import run_in_interpreter

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

CHECKED = "test_nn_triton", "test_nn_triton_packed", "test_nn_triton_heads"
ON_A_CPU = "import routespace.nn.packing.triton_here as here; here.DEVICES = ('cpu',)"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 2e-2, marks=pytest.mark.slow)]
)
def test_kernels_in_the_interpreter(dtype, tolerance):
    checks = [
        f"import {module}; {module}.assert_all_kernels_are_right('cpu', torch.{dtype}, {tolerance})"
        for module in CHECKED
    ]
    run_in_interpreter("\n".join([checks[0], ON_A_CPU, *checks[1:]]))
