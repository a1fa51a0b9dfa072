"""Passes that take away what a model does not need."""
