"""pycni: a container network data plane in Python. See ARCHITECTURE.md for the map."""

__version__ = "0.1.0"
