"""Backs up an old hosting server, proves it, and says whether the server may be let go."""

__version__ = "0.1.0"
