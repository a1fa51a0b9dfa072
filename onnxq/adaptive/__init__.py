"""Quantized models in production: watched, adapted to what comes, taken back where that fails."""
