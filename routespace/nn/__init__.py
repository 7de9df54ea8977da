"""The network that a grid compiles into, with its gates.

Begin with `route_net.py`: one class from supernet to static subnet; the folders below are its floors.
"""
