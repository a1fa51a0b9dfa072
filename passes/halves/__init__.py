"""16-bit floats."""
