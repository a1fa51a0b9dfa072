"""What to say of providers that were compared."""

from __future__ import annotations

from collections import Counter

from onnxq.report import words
from onnxq.verify.result import ProviderFacts, Report

_OPERATORS = 4
"""Kinds of operators that are named."""


def told_of(found: ProviderFacts) -> str:
    """One provider in a line: what it takes, how near its outputs are, and where it parts."""
    parts = [f"runs {words.count(found.nodes_taken, 'operator')}"]
    if found.nodes_left:
        parts.append(f"leaves {found.nodes_left} to others: {_left(found)}")
    parts.append(f"SQNR {words.decibels(found.sqnr_db)}")
    if found.agrees is False:
        parts.append(f"parts from the CPU provider at {words.name(found.parts_at)}")
    return ", ".join(parts)


def providers_notes(report: Report) -> tuple[str, ...]:
    """Sentences on operators that fell to another provider, and on where providers part."""
    notes = []
    for found in report.providers:
        if not found.nodes_taken:
            notes.append(
                f"Provider {found.name} takes no operator of the candidate: the whole model runs "
                "on the CPU provider."
            )
        elif found.nodes_left:
            all_nodes = found.nodes_taken + found.nodes_left
            notes.append(
                f"Provider {found.name} leaves {found.nodes_left} of {all_nodes} operators of the "
                f"candidate to another provider, which onnxruntime does not tell: {_left(found)}."
            )
        for what, agrees, at in (
            ("candidate", found.agrees, found.parts_at),
            ("float model", found.float_agrees, found.float_parts_at),
        ):
            if agrees is None:
                notes.append(
                    f"Whether {found.name} computes what the CPU provider does is not known of the "
                    f"{what}: their outputs are more than a quantization step apart, and it is too "
                    "large to look for where they part."
                )
            elif not agrees:
                notes.append(
                    f"{found.name} and the CPU provider part at node '{at}' of the {what}: from "
                    "the same values they compute results more than a quantization step apart."
                )
    return tuple(notes)


def _left(found: ProviderFacts) -> str:
    return words.listed(Counter(found.left), _OPERATORS)
