"""One feature of the mesh a module; each is a layer: it takes a handler and returns another.

`meshkit/stack.py` has their order.
"""
