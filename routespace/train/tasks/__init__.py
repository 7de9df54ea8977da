"""What a network is taught: targets, loss and metric of each task.

Begin with `classify.py`.
"""
