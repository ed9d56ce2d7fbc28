"""The await side of the story; `broker.py` tells it."""
