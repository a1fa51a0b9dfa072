"""Passes that move, merge and cut without computing."""
