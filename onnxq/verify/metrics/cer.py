"""Character error rate."""

from __future__ import annotations

from onnxq.verify.metrics.ctc import CtcErrors


class CharacterErrors(CtcErrors):
    """Errors per true character of what greedy decoding reads from CTC outputs."""

    name = "cer"

    def _parts(self, text: list[int]) -> list[int]:
        return text
