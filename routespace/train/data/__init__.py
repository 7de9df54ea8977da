"""Where images and targets come from.

Begin with `loaders.py`: what the training loop is given; each kind of data has a file of its own.
"""
