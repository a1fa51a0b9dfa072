"""Options of the commands that quantize, or study what quantizing would do."""

from __future__ import annotations

import argparse

from onnxq.cli import options
from onnxq.observe import CALIBRATORS
from onnxq.planning import Settings
from onnxq.recipe import built_in_recipes
from onnxq.sensitivity import PARTS
from onnxq.targets import available_targets


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


def add_float_recipe(parser: argparse.ArgumentParser, default: str) -> None:
    """The recipe, of which only the float passes count."""
    parser.add_argument(
        "--recipe",
        default=default,
        metavar="NAME|FILE",
        help=f"float passes that come first: {', '.join(built_in_recipes())}, or a .toml file",
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Where the model is to run."""
    parser.add_argument(
        "--target",
        default="auto",
        metavar="T",
        help=f"where it is to run: auto, {', '.join(available_targets())} (default auto)",
    )


def add_calibrator(parser: argparse.ArgumentParser) -> None:
    """How ranges are found."""
    parser.add_argument(
        "--calibrator",
        type=options.named,
        metavar="C",
        help=f"how ranges are found: {', '.join(CALIBRATORS)} (default: the recipe's)",
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
        action="append",
        default=[],
        type=options.named,
        metavar="P",
        help=f"consider this precision: {', '.join(PARTS)} (repeatable; default: the target's)",
    )
    add_float_recipe(parser, "mixed")
    add_target(parser)
    add_calibrator(parser)
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
        type=options.named,
        metavar="DIR",
        help="keep ranges, sensitivity and costs here, for another run",
    )


def settings(parsed: argparse.Namespace) -> Settings:
    """The settings that were given."""
    return Settings(
        recipe=parsed.recipe,
        target=parsed.target,
        calibrator=parsed.calibrator,
        precisions=tuple(parsed.precision),
        constant_initializers=parsed.constant_initializers,
        opset=parsed.opset,
        samples=parsed.samples,
        batch_size=parsed.batch_size,
        images=options.image_options(parsed) if parsed.data else None,
        threads=parsed.threads,
        seed=parsed.seed,
        work_folder=parsed.work_dir,
        debug=options.debug_level(),
    )
