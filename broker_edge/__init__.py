"""broker_edge: an edge proxy for external data that decisions are made on."""

__version__ = "0.1.0"
