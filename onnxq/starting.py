"""Where the process of the command ``onnxq`` starts."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130

USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""Requests to end, and what Python does about them unless told otherwise."""


def start() -> int:
    """Run the command of this process; gives its exit code.

    What it imports takes a second. An exception in the middle of that could end in a crash of the
    libraries, and there is nothing to clean up yet, so a request to end is met at once.
    """
    for asked, usual in USUAL.items():
        if signal.getsignal(asked) is usual:
            signal.signal(asked, leave_at_once)
    from onnxq.cli import main

    return main()


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """A handler of signals that ends the process."""
    say_interrupted()
    os._exit(EXIT_INTERRUPTED)


def say_interrupted() -> None:
    """Tell what ended the command."""
    print("onnxq: error: interrupted", file=sys.stderr)
