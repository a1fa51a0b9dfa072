"""Options of the commands that quantize, or study what quantizing would do."""

from __future__ import annotations

import argparse
from dataclasses import fields

from onnxq.cli import options
from onnxq.observe import CALIBRATORS
from onnxq.options import DEFAULT_RECIPE, Options
from onnxq.precision import searchable
from onnxq.recipe import built_in_recipes
from onnxq.targets import available_targets
from onnxq.tune import available_tuners


def add_model(parser: argparse.ArgumentParser, **keywords: str) -> None:
    """The float model."""
    parser.add_argument(
        "model",
        type=options.named,
        metavar="MODEL",
        help="float model, an .onnx file",
        **keywords,  # type: ignore[arg-type]
    )


def add_data(
    parser: argparse.ArgumentParser, *, required: bool = True, otherwise: str = ""
) -> None:
    """Representative samples; ``otherwise`` says what happens without."""
    text = "representative samples: .npz, folder of .npz, test data or images, module:function"
    parser.add_argument(
        "--data",
        type=options.named,
        required=required,
        metavar="DATA",
        help=f"{text} ({otherwise})" if otherwise else text,
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """What to do."""
    parser.add_argument(
        "--recipe",
        default=DEFAULT_RECIPE,
        metavar="NAME|FILE",
        help=f"what to do: {', '.join(built_in_recipes())}, or a .toml file (default "
        f"{DEFAULT_RECIPE}: the fastest mixture of precisions that keeps the promise)",
    )


def add_methods(parser: argparse.ArgumentParser) -> None:
    """Tuners."""
    parser.add_argument(
        "--methods",
        type=lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
        default=("auto",),
        metavar="auto|none|LIST",
        help=f"methods that compute weights and scales: {', '.join(available_tuners())} (default "
        "auto: those that the precisions name)",
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Where the model is to run."""
    parser.add_argument(
        "--target",
        default="auto",
        metavar="NAME|FILE",
        help=f"where it is to run: auto, {', '.join(available_targets())}, or a .toml file "
        "(default auto)",
    )


def add_calibrator(parser: argparse.ArgumentParser) -> None:
    """How ranges are found."""
    parser.add_argument(
        "--calibrator",
        type=options.named,
        metavar="C",
        help=f"how ranges are found: {', '.join(CALIBRATORS)}, with options as "
        "percentile{percentile=99.9} (default: the recipe's)",
    )


def add_constant_initializers(parser: argparse.ArgumentParser) -> None:
    """Whether weights that are inputs count as constants."""
    parser.add_argument(
        "--constant-initializers",
        action="store_true",
        help="treat weights that are listed as inputs, too, as constants",
    )


def add_opset(parser: argparse.ArgumentParser) -> None:
    """The least opset."""
    parser.add_argument(
        "--opset",
        type=options.positive,
        metavar="N",
        help="raise the model to at least this opset (default: only as far as the formats need)",
    )


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    """What the seed chooses."""
    parser.add_argument(
        "--seed", type=options.whole, default=0, metavar="N", help=f"chooses {what} (default 0)"
    )


def add_pins(parser: argparse._ActionsContainer) -> None:
    """Precisions set by hand."""
    parser.add_argument(
        "--pin",
        dest="pins",
        action="append",
        default=[],
        type=options.named,
        metavar="PATTERN=P",
        help="precision of the nodes whose name matches, as 'head*=float32' (repeatable)",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """How the model is read, rewritten and calibrated."""
    parser.add_argument(
        "--precision",
        dest="precisions",
        action="append",
        default=[],
        type=options.named,
        metavar="P",
        help=f"consider this precision: {', '.join(searchable())} (repeatable; default: the "
        "target's)",
    )
    add_recipe(parser)
    add_target(parser)
    add_calibrator(parser)
    add_methods(parser)
    options.add_samples(parser)
    add_constant_initializers(parser)
    add_opset(parser)
    add_seed(parser, "samples where only some are used")
    add_work_folder(parser)
    options.add_measuring(parser)
    options.add_common(parser)
    options.add_images(parser)


def add_work_folder(parser: argparse._ActionsContainer) -> None:
    """Where to keep what was found out."""
    parser.add_argument(
        "--work-dir",
        dest="work_folder",
        type=options.named,
        metavar="DIR",
        help="keep ranges, sensitivity and costs here, for another run",
    )


def given(parsed: argparse.Namespace) -> Options:
    """The options that were given on the command line."""
    names = {field.name for field in fields(Options)} & vars(parsed).keys()
    found = {name: getattr(parsed, name) for name in names}
    found["images"] = options.image_options(parsed) if parsed.data else None
    return Options(**found, debug=options.debug_level())
