"""Data sources as documents: files in, differences shown, changes made, files out."""
