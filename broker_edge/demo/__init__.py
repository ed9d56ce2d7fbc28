"""The sample bureau and the commands that ask it through the edge: nothing of the service itself depends on this package."""
