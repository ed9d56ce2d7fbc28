"""Sinks of Trail: metrics, spans and logs render the same facts, so that they can't disagree."""
