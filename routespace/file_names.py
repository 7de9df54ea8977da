"""The names of the files in runs, bundles and studies. No other file spells one.

`RunFolder` (train/run_folder.py) says where those of a run lie and reads them; `load_bundle` (deploy/bundle.py)
reads those of a bundle.
"""

# of a network
NETWORK = "network.json"  # architecture and gates
WEIGHTS = "model.safetensors"
PREPROCESS = "preprocess.json"  # how images go in, and the class names in the order of the outputs
RECIPE = "recipe.yaml"

# of a run
ARCHITECTURE = "architecture.json"
CHECKPOINT = "checkpoint"  # a folder
DATA = "data.json"  # the names of the images that it began with
METRICS = "metrics.jsonl"
NET = "net"  # a folder, of the final network
RESULT = "result.json"
EARLIER = "earlier.json"  # what was measured of the network that a run started from
USAGE = "usage.json"

# of a bundle, of a series of bundles, and of a study
CARD = "card.json"
SERIES = "series.json"  # the table of several bundles in one folder
STUDY = "study.json"  # which storage and study a folder belongs to
