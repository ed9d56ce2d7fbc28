"""The outside over HTTP: the front for fetches, ordinary routes for the rest."""
