"""The lines of `benchmarks/gpu.py`. Begin with `line.py`, which says what a line is; `lines.py` lists them all."""
