"""What `benchmarks/evidence.py` trains: `lines.py` has the networks, `arenas.py` the tasks."""
