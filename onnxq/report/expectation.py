"""What users can expect of a candidate that was not held against labels, in words."""

from __future__ import annotations

import math

from onnxq.report import words
from onnxq.verify.result import AGREEMENT, Report


def expectation(report: Report) -> tuple[str, ...]:
    """Sentences on how the candidate's outputs compare with the float model's."""
    metric, agreement = report.metric, report.agreement
    if agreement is not None and metric is not None and metric.name == AGREEMENT:
        what, where, amount = words.agreement(agreement)
        found = "; ".join(f"output '{d.output}', {d.why}" for d in agreement.decisions)
        left = ", ".join(f"output '{name}'" for name in agreement.left_out)
        found += left and f"; left out: {left}, whose first axis is not that of the samples"
        return (
            f"Expect the same {what} as the float model's "
            f"{where.format(words.share(agreement.value))}, 95 % interval "
            f"{words.agreement_interval(agreement)}, measured over {amount}. "
            f"What decides: {found}; --metric sqnr compares numbers instead.",
        )
    if metric is None and report.outputs and math.isfinite(report.sqnr_db):
        off = words.share(10 ** (-report.sqnr_db / 20))
        return (f"Expect outputs that are off by {off} of their size (root mean square).",)
    return ()
