"""``onnxq train``."""

from __future__ import annotations

import argparse
from dataclasses import fields

from onnxq.cli.optimize import destination, outcome
from onnxq.cli.options import IMAGES
from onnxq.cli.parsed import given
from onnxq.cli.terminal import Outcome
from onnxq.progress import Progress
from onnxq.training import train
from onnxq.tune.training import TrainOptions

HELP = "quantize a float model, train what is quantized, and write it if it keeps its promise"

EXAMPLES = """examples:
  onnxq train model.onnx --data train.npz --eval test.npz -o model.int8.onnx
  onnxq train model.onnx --data train/ --eval test/ --image-size 32x32 --augment flip,crop \\
      --epochs 20 --resume run/ -o model.int8.onnx --report report/
  onnxq train model.onnx --data unlabelled.npz --loss distill -o model.int8.onnx
  onnxq train model.onnx --data train.npz --bits w3a3 --through w4a4 --batch-norm restored \\
      -o model.int8.onnx
"""

NEEDS = "model --data --output"
TAKES = (
    "--eval --bits --through --method --loss --features --batch-norm --epochs --lr --batch-size "
    "--accumulate --optimizer --weight-decay --average --schedule --warmup --augment --patience "
    "--device --mixed-precision --processes --resume --target --provider-option --calibrator "
    "--max-drop --min-agreement --min-speedup --min-sqnr --max-size-ratio --keep-failed "
    "--plan-out --pin --metric --calibration-samples --keep-overridable --opset --seed "
    f"--memory-limit --report --threads --latency-of {IMAGES}"
)
CHANGES = {
    "--data": {"help": "samples to train on, in the forms that --data of optimize has"},
    "--method": {
        "choices": ("lsq", "lsq+", "ste"),
        "help": "lsq learns the steps, too, lsq+ and zero-points; ste leaves them (default lsq)",
        "dest": "method",
    },
    "--batch-size": {
        "help": "samples in an update (default 64)",
        "dest": "update",
        "group": "training",
    },
    "--seed": {"help": "chooses the held-out parts, order and augmentation (default 0)"},
}
MAKES_MODEL = True


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    ends = destination(parsed)
    asked = {**vars(parsed), "batch_size": parsed.update}
    own = {f.name: asked[f.name] for f in fields(TrainOptions) if asked.get(f.name) is not None}
    result = train(
        parsed.model,
        parsed.data,
        parsed.bits,
        given(parsed),
        TrainOptions(**own),
        folder=parsed.resume,
        progress=progress,
        **ends,
    )
    return outcome(result, parsed)
