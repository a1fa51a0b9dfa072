"""The command ``onnxq``: choosing a command, and what comes of errors."""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from onnxq.cli import (
    apply,
    batch,
    bench,
    calibrate,
    compare,
    cost,
    doctor,
    gguf,
    inspect,
    optimize,
    plan,
    recipes,
    report,
    rewrite,
    sensitivity,
    targets,
    train,
    watch,
)
from onnxq.cli.options import declare
from onnxq.cli.parsed import check_files, debug_level
from onnxq.cli.terminal import EXIT_DEFECT, EXIT_INPUT, Outcome, emit, progress, show, write_json
from onnxq.errors import InputError
from onnxq.report.words import printable
from onnxq.starting import EXIT_INTERRUPTED, USUAL, leave_at_once, say_interrupted

_CLEANING_SECONDS = 5.0
"""After a request to end, in which others are not heard."""

COMMANDS = (
    optimize,
    train,
    calibrate,
    sensitivity,
    cost,
    plan,
    apply,
    compare,
    watch,
    rewrite,
    bench,
    inspect,
    targets,
    recipes,
    gguf,
    report,
    batch,
    doctor,
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(_fail(EXIT_INPUT, f"{message}; `{self.prog} -h` explains the options"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code.

    0: done and every gate held. 1: a gate failed. 2: the input or an option cannot be used, and
    one sentence on standard error says why. 70: a defect of onnxq. 130: interrupted, by
    Ctrl-C or SIGTERM.
    """
    try:
        with _terminable():
            return _run(arguments)
    except InputError as error:
        return _fail(EXIT_INPUT, str(error))
    except KeyboardInterrupt:
        say_interrupted()
        return EXIT_INTERRUPTED
    except MemoryError:
        return _fail(EXIT_INPUT, "there is not enough memory for this; use less data or a batch")
    except Exception as error:
        if debug_level():
            raise
        return _fail(
            EXIT_DEFECT,
            f"this is a defect of onnxq ({type(error).__name__}: {error}); ONNXQ_DEBUG=1 shows "
            "where it happened",
        )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let Ctrl-C and requests to terminate end a command so that its temporary files go.

    Requests soon after the first are not heard: `timeout` tells the process and then its group, and
    the second would break off the cleaning up. A program that has handlers of its own keeps them.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {asked: signal.getsignal(asked) for asked in USUAL if is_main}
    ours = [s for s, handler in before.items() if handler in (USUAL[s], leave_at_once)]
    heard = -math.inf

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if time.monotonic() >= heard + _CLEANING_SECONDS:
            heard = time.monotonic()
            signal.default_int_handler(number, frame)

    for asked in ours:
        signal.signal(asked, leave)
    try:
        yield
    finally:
        for asked in ours:
            signal.signal(asked, before[asked])


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given = sys.argv[1:] if arguments is None else arguments
        # Without a command there is nothing to do but to say what could be done.
        parsed, unknown = parser().parse_known_args(given or ["-h"])
        if unknown:
            parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as leaving:
        # argparse has said what there was to say: the help, the version or an error.
        emit()
        return int(leaving.code or 0)
    debug_level()
    parsed.command = shlex.join(["onnxq", *given])
    check_files(parsed)
    with progress(parsed) as stages:
        found: Outcome = parsed.run(parsed, stages)
    write_json(parsed, found.body)
    show(parsed, found.shown, found.ending)
    return found.code


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from onnxq import __version__

    found = _Parser(
        prog="onnxq",
        description="Quantize ONNX models, and prove the result against the float model.",
        epilog="`onnxq COMMAND -h` explains a command.",
    )
    found.add_argument("--version", action="version", version=f"onnxq {__version__}")
    commands = found.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        declare(command, module.NEEDS, module.TAKES, getattr(module, "CHANGES", {}))
        makes_model = getattr(module, "MAKES_MODEL", False)
        command.set_defaults(run=module.run, parser=command, makes_model=makes_model)
    return found


def _fail(code: int, sentence: str) -> int:
    print(f"onnxq: error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return code
