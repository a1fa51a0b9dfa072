"""Print how the default sensitivity analysis compares with quantizing one node at a time.

Usage: python benchmarks/sensitivity.py [MODEL ...] [--samples N]

MODEL is the beginning of a case's name; without one: the trained models and the structure of
MobileNetV3-small. The exhaustive analysis quantizes one node of the whole model and runs all
calibration samples (at most N, 512 by default), for every node. Both are run in one process, one
after the other. Columns: nodes ranked, seconds of both and their ratio, samples the default drew,
Spearman correlation of the rankings by int8 loss, and how many of the 10 most sensitive nodes
(of all, where there are fewer) are the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from cases import Case, structure_cases, trained_cases
from scipy.stats import spearmanr

from onnxq.job import open_job
from onnxq.options import Options
from onnxq.prepare import observed, prepare
from onnxq.sensitivity import Sensitivity, analyse
from onnxq.study import whole_models

PRECISION = "int8"


def main() -> None:
    """Analyse every model both ways and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="beginning of a case's name")
    parser.add_argument("--samples", type=int, default=512, help="samples of the exhaustive way")
    parsed = parser.parse_args()
    print("| model | nodes | exhaustive s | default s | ratio | samples | Spearman | worst 10 |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        cases = [*trained_cases(parsed.samples), *structure_cases(Path(folder), count=128)]
        for case in cases:
            chosen = tuple(parsed.models) or ("digits", "text", "cifar", "mobilenet_v3")
            if case.name.startswith(chosen):
                print(_row(case, parsed.samples), flush=True)


def _row(case: Case, samples: int) -> str:
    options = Options(precisions=(PRECISION,), samples=samples)
    with open_job(case.model, case.data, options, eval_data=case.eval_data) as job:
        prepared = observed(prepare(job))
        graph, scene, choices = prepared.graph, prepared.scene(), prepared.choices
        started = time.perf_counter()
        whole = whole_models(prepared).__getitem__
        quick = analyse(graph, job.samples, scene, choices, whole)
        middle = time.perf_counter()
        slow = analyse(graph, job.samples, scene, choices, whole, method="exhaustive")
        seconds = (time.perf_counter() - middle, middle - started)
    ours, theirs = _losses(quick), _losses(slow)
    names = list(theirs)
    agreement = spearmanr([ours[n] for n in names], [theirs[n] for n in names]).statistic
    count = min(10, len(names))
    worst = [set(sorted(names, key=lambda n: -found[n])[:count]) for found in (ours, theirs)]
    return (
        f"| {case.name} | {len(names)} | {seconds[0]:.1f} | {seconds[1]:.1f} "
        f"| 1/{seconds[0] / seconds[1]:.1f} | {quick.samples} of {slow.samples} "
        f"| {agreement:.3f} | {len(worst[0] & worst[1])} of {count} |"
    )


def _losses(found: Sensitivity) -> dict[str, float]:
    return dict(found.ranking(PRECISION))


if __name__ == "__main__":
    main()
