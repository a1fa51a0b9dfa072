"""Precisions that a plan may give to a node."""

FLOAT = "float32"
"""The precision that every node starts from."""
