"""Static integers: where they can go, and the pairs that put them there."""
