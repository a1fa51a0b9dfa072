"""Calibration as a stage of its own: from a model and data to ranges."""

from __future__ import annotations

from onnxq.data import DataLike, ImageOptions, read
from onnxq.ir import Context, load
from onnxq.observe import Ranges, calibrate, parse_calibrator
from onnxq.passes.cleanup.constant_initializers import ConstantInitializers
from onnxq.progress import SILENT, Progress
from onnxq.recipe import Recipe, load_recipe
from onnxq.runtime import Session
from onnxq.stages import ModelLike, as_file, float_graph, place_integers
from onnxq.targets import load_target
from onnxq.verify.facts import file_sha256


def find_ranges(
    model: ModelLike,
    data: DataLike,
    *,
    calibrator: str | None = None,
    recipe: str | Recipe = "int8",
    target: str = "auto",
    memory_limit: int | None = None,
    constant_initializers: bool = False,
    opset: int | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    images: ImageOptions | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Ranges:
    """Find the ranges of the activations that `optimize` would quantize.

    They come with histograms, so that `Ranges.with_calibrator` can try other calibrators without
    running the model again.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`; of data with a split of its own, the
            calibration part.
        calibrator: How to choose the ranges, as ``percentile{percentile=99.9}``; the recipe's if
            None.
        recipe: A `Recipe`, or the name or file of one: its float passes come before calibration.
        target: Where the model is to run; ``auto`` is this machine's processor.
        memory_limit: Bytes that calibration may take beyond plain inference. Where observing all
            tensors at a time takes more, the data is passed over several times.
        constant_initializers: Make weights that are listed as inputs, too, constants.
        opset: Raise the model to at least this opset; the lowest that will do if None.
        samples: Use only about so many samples.
        batch_size: Samples in a batch where the model leaves it open.
        images: How to read a folder of images.
        threads: Threads inside one operator; all processors when None.
        seed: Which samples are used where only some of a split's are.
        progress: Told of stages.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    steps = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    table = load_target(target)
    chosen = parse_calibrator(calibrator or steps.calibrator)
    with as_file(model) as (path, _):
        source = load(path)
        dataset = read(data, Session(path).inputs, batch_size=batch_size, images=images)
        if dataset.has_split:
            dataset = dataset.split(seed, samples)[0]
        elif samples is not None:
            dataset = dataset.take(samples)
        if constant_initializers:
            ConstantInitializers().run(source, Context(0))
        graph, _ = float_graph(source, steps, table, max(table.opset, opset or 0), 0, progress)
        placed = place_integers(graph, steps, table)
        progress.stage("calibrating", 100)
        found = calibrate(
            graph,
            dataset,
            placed.observed(),
            calibrator=chosen,
            format=table.activation_format,
            scheme=table.activation_scheme,
            histograms=True,
            memory_limit=memory_limit,
            model_sha256=file_sha256(path),
            threads=threads,
            progress=lambda done, total: progress.advance(100 * done // total),
        )
    progress.finish()
    return found
