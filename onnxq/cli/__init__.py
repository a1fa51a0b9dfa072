"""The command line."""

from onnxq.cli.command import main

__all__ = ["main"]
