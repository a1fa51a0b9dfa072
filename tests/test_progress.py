"""Which stage is said to have held the most memory."""

from __future__ import annotations

from onnxq.progress import SILENT, PeakWatch


def test_the_stage_in_which_the_peak_rose_last_is_named() -> None:
    # At the start, at the beginning of three stages, and when asked twice.
    peaks = iter([100, 100, 250, 250, 300, 300])
    watch = PeakWatch(SILENT, lambda: next(peaks))
    for name in ("first", "second", "third"):
        watch.stage(name)
    assert [watch.peak_stage(), watch.peak_stage()] == ["third", "third"]
    peaks = iter([100, 150, 150])
    watch = PeakWatch(SILENT, lambda: next(peaks))
    watch.stage("first")
    assert watch.peak_stage() == "reading"


def test_nothing_is_named_where_more_was_held_before() -> None:
    watch = PeakWatch(SILENT, lambda: 100)
    watch.stage("first")
    assert watch.peak_stage() == ""
