"""The command ``onnxq``: choosing a command, and what comes of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from onnxq.cli import bench, compare, inspect, optimize, rewrite
from onnxq.cli.options import EXIT_INPUT, EXIT_OK, debug_level
from onnxq.errors import InputError

EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

COMMANDS = (optimize, compare, rewrite, bench, inspect)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"onnxq: error: {message}; `{self.prog} -h` explains the options\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code.

    0: done and every gate held. 1: a gate failed. 2: the input or an option cannot be used, and
    one sentence on standard error says why. 70: a defect of onnxq. 130: interrupted.
    """
    try:
        parsed = _parser().parse_args(arguments)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else EXIT_INPUT
    except InputError as error:
        return _fail(EXIT_INPUT, str(error))
    except KeyboardInterrupt:
        return _fail(EXIT_INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # Whoever read the output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        if debug_level():
            raise
        return _fail(
            EXIT_DEFECT,
            f"this is a defect of onnxq ({type(error).__name__}: {error}); ONNXQ_DEBUG=1 shows "
            "where it happened",
        )
    return code


def _parser() -> argparse.ArgumentParser:
    from onnxq import __version__

    parser = _Parser(
        prog="onnxq",
        description="Quantize ONNX models, and prove the result against the float model.",
        epilog="`onnxq COMMAND -h` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"onnxq {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser


def _fail(code: int, sentence: str) -> int:
    print(f"onnxq: error: {' '.join(sentence.split())}", file=sys.stderr)
    return code
