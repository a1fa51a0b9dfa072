"""The command line."""

from onnxq.cli.main import main

__all__ = ["main"]
