"""The report as JUnit XML, which continuous integration services read."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from onnxq.report.words import number, printable
from onnxq.saved import write_text
from onnxq.verify.result import GateFacts, Report


def to_junit(report: Report) -> str:
    """One test suite in which each gate is a test case.

    A gate that did not hold is a failure whose message has the measured value. What was measured
    stands in the suite's properties.
    """
    failures = sum(not gate.passed for gate in report.gates)
    counts = {"tests": str(len(report.gates)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    name = printable(Path(report.output.path or report.model.path).name)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {"name": f"onnxq {name}", **counts, "skipped": "0", "time": f"{report.seconds:.3f}"},
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(report).items():
        attributes = {"name": printable(key), "value": printable(value)}
        ElementTree.SubElement(properties, "property", attributes)
    for gate in report.gates:
        _add_case(suite, gate, Path(name).stem)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(report: Report, path: Path) -> None:
    """Write `to_junit`, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, to_junit(report))


def _add_case(suite: ElementTree.Element, gate: GateFacts, model: str) -> None:
    attributes = {"classname": f"onnxq.{model}", "name": gate.expr, "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if gate.passed:
        return
    measured = "it was not measured" if gate.value is None else f"measured {number(gate.value)}"
    message = f"the gate {gate.expr} did not hold: {measured}"
    failure = ElementTree.SubElement(case, "failure", {"type": "gate", "message": message})
    failure.text = message


def _properties(report: Report) -> dict[str, str]:
    found: dict[str, str] = {
        "model": report.model.path,
        "model_sha256": report.model.sha256,
        "output": report.output.path,
        "output_sha256": report.output.sha256,
    }
    if report.metric is not None:
        found["metric"] = report.metric.name
        found["metric_float"] = repr(report.metric.float)
        found["metric_candidate"] = repr(report.metric.candidate)
        found["drop"] = repr(report.metric.drop)
        found["samples"] = str(report.metric.samples)
    found["sqnr_db"] = repr(report.sqnr_db)
    found["size_ratio"] = repr(report.size.ratio)
    found["float_bytes"] = str(report.size.float_bytes)
    found["candidate_bytes"] = str(report.size.candidate_bytes)
    for latency in report.latencies:
        found[f"speedup_{latency.provider}"] = repr(latency.speedup)
        found[f"float_ms_{latency.provider}"] = repr(latency.float_ms)
        found[f"candidate_ms_{latency.provider}"] = repr(latency.candidate_ms)
    found.update({f"version_{name}": text for name, text in report.versions.items()})
    return found
