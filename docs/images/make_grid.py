"""Draws grid.png: the demo's supernet and the share of tokens that each edge computed on validation.

Run `make demo` first, then: .venv/bin/python docs/images/make_grid.py [RUN]
"""

import json
import sys
from pathlib import Path

from routespace import Architecture
from routespace.draw.grid import draw_grid
from routespace.grid.usage import usage_from_json

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/supernet")
architecture = Architecture.from_json(json.loads((run / "architecture.json").read_text()))
usage = usage_from_json(json.loads((run / "usage.json").read_text()), architecture.grid)
draw_grid(architecture, usage, path=Path(__file__).with_name("grid.png"), title="Used share of the tokens, %")
