"""What is fast on a processor, and nothing that changes a result; the network runs without any of it.

Begin with `linear.py`: which library multiplies matrices.
"""
