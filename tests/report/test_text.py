"""The summary for a terminal."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from onnxq.precision import available_precisions, parse_precision
from onnxq.report import to_text
from onnxq.report.grouping import left_in_float, weakest
from onnxq.runtime import OutputError
from onnxq.verify import Report
from onnxq.verify.result import (
    CandidateFacts,
    JumpFacts,
    LatencyFacts,
    LayerFacts,
    MethodFacts,
    MetricFacts,
    SizeFacts,
)
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.verify.reports import CANDIDATE, DEPLOYMENTS, TRAINING, a_report


def printed(report: Report, width: int = 100, **options: str) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False, markup=False)
    console.print(to_text(report, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def flat(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_figures(width: int) -> None:
    lines = printed(a_report(), width)
    assert all(len(line.rstrip()) <= width for line in lines)
    text = flat(lines)
    for figure in (
        "99.00 % -> 98.50 %",
        "3.00 ms -> 2.00 ms",
        "3.00 ms -> 2.50 ms",
        "4 kB -> 1 kB",
        "4.00x smaller",
        "35.5 dB",
        "QLinearConv 2",
        "drop<=0.01 measured 0.005: held",
        "speedup>=2 not measured: FAILED",
    ):
        assert figure in text, figure
    # Cells may be broken over lines, so only their words have to be there.
    words = "0.50 points 95 -0.20 1.20 (450 samples) 1.50x 1.20x cuda, int8 float32"
    for word in words.split():
        assert any(word in line for line in lines), word


def test_training() -> None:
    (line,) = [row for row in printed(a_report(training=TRAINING)) if row.startswith("training")]
    assert "lsq, 2 epochs" in line
    numbers = replace(TRAINING, history=tuple(replace(e, score=None) for e in TRAINING.history))
    assert "held-out loss 0.5 -> 0.25" in flat(printed(a_report(training=numbers)))


def test_deployments() -> None:
    lines = printed(a_report(deployments=DEPLOYMENTS, deploy="onnxruntime.Inference()"), 160)
    assert "onnxruntime.Inference()" in lines
    assert "openvino, ov/python all int8 2.50x 2.40 to 2.60 29.5 dB 1 kB chosen" in flat(lines)
    assert "0.40 times as fast as what was chosen" in flat(lines)
    assert "nope/python 'nope/python' cannot be started" in flat(lines)


def test_one_line_a_figure_where_there_is_room() -> None:
    lines = [line.split("  ")[0] for line in printed(a_report(), 120)]
    assert lines == [
        "accuracy",
        "agreement",
        "latency",
        "latency",
        "throughput",
        "size",
        "SQNR",
        "integer",
        "precision",
        "left in float",
        "",
        "gates",
        "",
    ]


def test_integer_operators_are_named_without_their_domain() -> None:
    operators = {"QLinearConv": 1, "com.microsoft:QLinearConv": 2, "com.microsoft:QGemm": 1}
    report = a_report(output=replace(CANDIDATE, integer_operators=operators))
    (line,) = (line for line in printed(report) if line.startswith("integer"))
    assert "4 operators" in line and "QLinearConv 3, QGemm 1" in line
    none = a_report(output=replace(CANDIDATE, integer_operators={}, provider="cpu"))
    assert any(line.split() == ["integer", "0", "operators", "on", "cpu"] for line in printed(none))
    hidden = a_report(output=replace(CANDIDATE, integer_operators={}, compiled=9))
    (line,) = (line for line in printed(hidden) if line.startswith("integer"))
    assert " ".join(line.split()) == "integer not known the provider compiled 9 operators"


def test_what_was_not_measured_is_left_out() -> None:
    report = a_report(metric=None, agreement=None, latency=None, latencies=(), outputs=(), gates=())
    report = replace(report, throughput=())
    labels = [line.split("  ")[0] for line in printed(report)]
    assert labels == ["size", "integer", "precision", "left in float"]


def test_both_latencies_of_a_decoder_and_throughput_are_shown() -> None:
    prompt = LatencyFacts("cpu", 2, 30.0, 20.0, 1.5, 4, "prompt")
    token = LatencyFacts("cpu", 2, 3.0, 1.0, 3.0, 4, "token", (2.9, 3.125))
    lines = [" ".join(line.split()) for line in printed(a_report(latencies=(prompt, token)), 120)]
    assert lines[2:5] == [
        "latency prompt 30.0 ms -> 20.0 ms 1.50x as fast (cpu, 2 threads, batch of 4)",
        "latency token 3.00 ms -> 1.00 ms 3.00x as fast, 95 % interval 2.90 to 3.12 (cpu, 2 "
        "threads, batch of 4)",
        "throughput 400/s -> 700/s 1.75x as many (cpu, 1 thread, batch of 8)",
    ]


def test_a_larger_candidate_is_called_larger() -> None:
    report = a_report(size=SizeFacts(1000, 4000, 0.25))
    assert any(line.split()[-2:] == ["4.00x", "larger"] for line in printed(report))


def test_a_metric_without_interval() -> None:
    report = a_report(metric=MetricFacts("bits-per-byte", 2.0, 2.1, 0.1, 1, None))
    first = printed(report)[0]
    assert first.split("  ")[0] == "bits-per-byte"
    assert "2 -> 2.1" in first and "drop 0.1 (1 sample)" in first and "interval" not in first


def test_agreement_takes_the_place_of_the_metric_without_labels() -> None:
    agreement = a_report().agreement
    assert agreement is not None
    first, second = printed(a_report(metric=agreement.as_metric()), 120)[:2]
    assert " ".join(first.split()) == (
        "agreement 98.75 % same decision as float, 95 % interval 97.0 to 99.5 % (450 samples)"
    )
    assert second.startswith("latency")


def test_the_worst_output_is_shown() -> None:
    assert any("worst of 2 outputs: y" in line for line in printed(a_report()))
    one = a_report(outputs=(OutputError("only", math.inf, 1.0, 0.0),))
    assert any(line.split() == ["SQNR", "exact", "output", "only"] for line in printed(one))


def reasons(count: int) -> tuple[LayerFacts, ...]:
    return tuple(
        LayerFacts(f"n{i}_{j}", "Exp", "float32", None, None, f"reason {i}")
        for i in range(count)
        for j in range(count - i)
    )


def test_only_the_weightiest_reasons_are_listed() -> None:
    lines = [line for line in printed(a_report(layers=reasons(7))) if "Exp" in line]
    assert [line.split("reason")[1].strip() for line in lines] == list("01234")
    rest = next(line for line in printed(a_report(layers=reasons(7))) if "more reason" in line)
    assert rest.split() == ["3", "operators", "for", "2", "more", "reasons"]
    assert not any("more reason" in line for line in printed(a_report(layers=reasons(5))))


def test_weakest_layers_are_listed_on_request() -> None:
    layers = tuple(
        LayerFacts(f"n{sqnr}", "Conv", "int8", sqnr, None, "")
        for sqnr in (50.0, 10.0, math.inf, 30.0, 20.0, 40.0, 60.0)
    )
    report = a_report(layers=(*layers, LayerFacts("x", "Exp", "float32", None, None, "")))
    assert not any("weakest" in line for line in printed(report))
    lines = printed(report, layers="weakest")
    at = next(i for i, line in enumerate(lines) if line.startswith("weakest layers"))
    assert [line.split()[-3] for line in lines[at:]] == [
        "n10.0",
        "n20.0",
        "n30.0",
        "n40.0",
        "n50.0",
    ]
    assert "10.0 dB  n10.0 (Conv, int8)" in lines[at]


def test_layers_without_error_or_measurement() -> None:
    exact = a_report(layers=(LayerFacts("a", "Conv", "int8", math.inf, None, ""),))
    assert "weakest layers none every layer is exact" in flat(printed(exact, layers="weakest"))
    unknown = a_report(layers=(LayerFacts("a", "Conv", "int8", None, None, ""),))
    assert "weakest" not in flat(printed(unknown, layers="weakest"))


def test_hostile_names_are_escaped() -> None:
    lines = printed(hostile_report(), 2000, layers="weakest")
    assert all(is_clean(line) for line in lines)
    assert flat(lines).count(SCRIPT) >= 6
    assert sum("\\x1b[31m" in line for line in lines) >= 5


def test_groups_of_one_reason() -> None:
    layers = [
        LayerFacts("a", "Exp", "float32", None, None, "x"),
        LayerFacts("b", "Conv", "int8", 1.0, None, ""),
        LayerFacts("c", "Exp", "float32", None, None, "y"),
        LayerFacts("d", "Log", "float32", None, None, "y"),
    ]
    groups = left_in_float(layers)
    assert [(g.reason, dict(g.operators)) for g in groups] == [
        ("y", {"Exp": 1, "Log": 1}),
        ("x", {"Exp": 1}),
    ]
    assert [layer.node for layer in groups[0].layers] == ["c", "d"]


def test_weakest_takes_no_exact_layers() -> None:
    layers = [
        LayerFacts(str(s), "Conv", "int8", s, None, "") for s in (math.inf, 3.0, None, -math.inf)
    ]
    assert [layer.node for layer in weakest(layers, 9)] == ["-inf", "3.0"]
    assert [layer.node for layer in weakest(layers, 1)] == ["-inf"]


def test_candidates_and_notes() -> None:
    candidates = (
        CandidateFacts("all int8", 3.0, 1e-3, 29.5, 0.002),
        CandidateFacts("plan", 2.0, 0.0, None, None),
    )
    lines = printed(a_report(candidates=candidates, notes=("It is certain.",)))
    (header,) = (at for at, line in enumerate(lines) if line.startswith("candidates"))
    assert lines[header].split("  ")[-1].strip() == "drop"
    rows = [" ".join(line.split()) for line in lines[header + 1 : header + 3]]
    assert rows == ["all int8 3.00x 30.0 dB 29.5 dB 0.20 points", "plan 2.00x exact"]
    assert "It is certain." in [line.strip() for line in lines]


def test_methods() -> None:
    methods = (
        MethodFacts("a", "smooth-quant", 0.0, 0.1),
        *(MethodFacts(name, "gptq", gain, 1.0) for name, gain in (("b", 3.0), ("c", 5.0))),
    )
    lines = [" ".join(line.split()) for line in printed(a_report(methods=methods))]
    assert "methods 1 node smooth-quant" in lines
    assert "2 nodes gptq: error lower by 4.0 dB in the median" in lines


def test_reasons_of_a_plan_are_not_left_in_float() -> None:
    layers = (
        LayerFacts("a", "Conv", "int8", 30.0, None, "2.5 times as fast"),
        LayerFacts("b", "Conv", "float32", 30.0, None, "too much for the promise"),
        LayerFacts("c", "MatMul", "int8-dynamic", 30.0, None, "pinned by hand"),
    )
    assert [group.reason for group in left_in_float(layers)] == ["too much for the promise"]


@pytest.mark.parametrize(
    "name", [n for n, p in available_precisions().items() if p.weight_bits < 16]
)
def test_no_quantized_precision_is_left_in_float(name: str) -> None:
    found = parse_precision(name).described
    assert not left_in_float([LayerFacts("a", "MatMul", found, 30.0, None, "chosen")])


def test_all_layers_with_both_errors_and_the_first_jump() -> None:
    layer = LayerFacts("c", "Conv", "int8", 30.5, None, "", 0.99, 12.5, 0.9, 34.0, 7, 3.25, 0.0625)
    plain = LayerFacts("e", "Exp", "float32", None, None, "")
    jump = JumpFacts("c", "Conv", "the quantization of 'v'", 12.5, 34.0, 0.0625, ("d",))
    exact = replace(layer, node="s", local_db=math.inf, worst_channel=0, worst_channel_db=math.inf)
    lines = printed(a_report(layers=(layer, plain, exact), jump=jump), 200, layers="all")
    (row,) = (line for line in lines if line.startswith("c (Conv)"))
    assert " ".join(row.split()) == "c (Conv) int8 30.5 dB 12.5 dB 7: 3.2 dB 6.25 %"
    (row,) = (line for line in lines if line.startswith("e (Exp)"))
    assert row.split() == ["e", "(Exp)", "float32"]
    (row,) = (line for line in lines if line.startswith("s (Conv)"))
    assert " ".join(row.split()) == "s (Conv) int8 30.5 dB exact 6.25 %"
    assert lines[-1] == (
        "First jump: c (Conv) is at fault: the quantization of 'v' has 12.5 dB on float's inputs, "
        "where its precision explains 34.0 dB; 6.25 % of its values are cut off; or d is."
    )
    assert "First jump" not in flat(printed(a_report(jump=jump)))
