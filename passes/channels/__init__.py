"""Equivalent transformations of channels: factors that go through a float graph."""
