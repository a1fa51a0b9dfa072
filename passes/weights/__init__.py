"""Weights in few bits: stored alone, or with dynamic activations."""
