"""What a command does, callable from Python: load a run or bundle, extract and verify, evaluate, paint, time.

Begin reading in `artifacts`, which loads what the others work on; the command line only parses and prints.
"""
