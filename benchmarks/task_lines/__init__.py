"""What benchmarks/tasks.py compares, and what it looks at."""
