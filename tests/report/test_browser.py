"""Pages in a browser: nothing is fetched or complained of, and everything can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxq.ir import infer_types
from onnxq.report import sides, to_html
from onnxq.report.sensitivity import to_html as sensitivity_page
from onnxq.report.watch import to_html as watch_page
from onnxq.runtime.browser import missing_browser, open_browser
from onnxq.sensitivity import NodeSensitivity, Sensitivity
from onnxq.verify import Report
from onnxq.verify.precision import describe
from onnxq.verify.result import CandidateFacts, MethodFacts, TensorFacts
from onnxq.verify.structure import structure
from tests.networks import residual_products
from tests.report.hostile import hostile_report
from tests.report.test_watch import REPLAY
from tests.verify.reports import DEPLOYMENTS, TRAINING, a_report

if lacking := missing_browser():
    pytest.skip(lacking, allow_module_level=True)

pytestmark = pytest.mark.slow

SECTIONS = (
    "promise deployment accuracy latency size graph layers sensitivity candidates distributions "
    "methods training drift float integers passes versions"
)


def full() -> Report:
    """A report with every section."""
    graph = residual_products(6)
    infer_types(graph)
    layers = tuple(
        replace(
            n,
            precision="int8" if at % 3 else "float32",
            sqnr_db=10.0 + at,
            local_db=50.0 - at,
            sensitivity=1e-3,
        )
        for at, n in enumerate(describe(graph))
    )
    layers = (replace(layers[0], reason="for a reason"), *layers[1:])
    return a_report(
        layers=layers,
        graph=structure(graph),
        candidates=(
            CandidateFacts("all int8", 3.0, 1e-3, 29.5, 0.002, True),
            CandidateFacts("float, rewritten", 1.0, 0.0, None, None),
        ),
        methods=(MethodFacts("product1", "gptq", 3.0, 1.0),),
        tensors=(TensorFacts("t", "c", 0.0, 1.0, -1.0, 1.0, (0.25, 0.75), 30.0, 0.25),),
        deployments=DEPLOYMENTS,
        deploy="onnxruntime.InferenceSession()",
        training=TRAINING,
        notes=("A note.",),
        command="onnxq optimize m.onnx --data d.npz",
    )


def an_analysis() -> Sensitivity:
    node = NodeSensitivity("n", "Conv", {"weights:int8": 1e-3}, {"int8": ("weights:int8",)})
    return Sensitivity("aa", "noise", "suffix", 12, 0.9, (node,))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens pages; in the end nothing was complained of, asked or fetched but they themselves."""
    said: list[str] = []
    contexts = []

    def open_page(html: str, **options: Any) -> Any:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda sent: sent.url == file.as_uri() or said.append(sent.url))
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.charts > 0")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said


@pytest.fixture(scope="module")
def html() -> str:
    return to_html(full(), [REPLAY])


def held(page: Any) -> dict[str, str]:
    """What the drawing says of itself."""
    found: dict[str, str] = page.locator("canvas").evaluate("canvas => ({...canvas.dataset})")
    return found


def settled(page: Any) -> dict[str, str]:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 30)))")
    return held(page)


@pytest.mark.parametrize("width", [1200, 360], ids=["screen", "phone"])
def test_every_section_is_there_and_none_wider_than_the_page(
    opened: Callable[..., Any], html: str, width: int
) -> None:
    page = opened(html, viewport={"width": width, "height": 800})
    ids = page.locator("main section").evaluate_all("all => all.map(one => one.id)")
    assert ids == SECTIONS.split()
    charts = page.locator(".chart")
    assert charts.count() == 10 == page.locator(".chart .main-svg:first-child").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than the page can be scrolled by keyboard.
    wide = page.locator(".scroll").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth && one.tabIndex < 0).length"
    )
    assert not wide


def test_charts_tell_what_the_pointer_is_on(opened: Callable[..., Any], html: str) -> None:
    page = opened(html)
    point = page.locator("#layers .chart .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    page.wait_for_selector("#layers .hovertext")
    assert "product0" in page.locator("#layers .hovertext").first.inner_html()


def test_colours_follow_the_theme(opened: Callable[..., Any], html: str) -> None:
    page = opened(html, color_scheme="light")
    axis = page.locator("#layers .xtick text").first
    light = axis.evaluate("one => getComputedStyle(one).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    dark = page.locator("#layers .xtick text").first.evaluate("one => getComputedStyle(one).fill")
    assert light == "rgb(23, 32, 44)" and dark == "rgb(232, 236, 242)"


def test_the_graph_zooms_folds_and_switches_colours(opened: Callable[..., Any], html: str) -> None:
    page = opened(html)
    graph = page.locator(".graph")
    # Six equal blocks, the input, the head and the output.
    first = settled(page)
    assert first["boxes"] == "9"
    graph.get_by_role("button", name="Zoom in").click()
    assert float(settled(page)["scale"]) == pytest.approx(float(first["scale"]) * 1.25, rel=1e-3)
    graph.get_by_role("button", name="Fit").click()
    assert settled(page)["scale"] == first["scale"]
    canvas = graph.locator("canvas")
    canvas.focus()
    canvas.hover()
    page.mouse.wheel(0, -400)
    assert float(settled(page)["scale"]) > float(first["scale"])
    graph.get_by_role("button", name="Unfold all").click()
    assert settled(page)["boxes"] == str(6 * 3 + 3)
    graph.get_by_role("button", name="Fold all").click()
    assert settled(page)["boxes"] == "9"
    radios = graph.get_by_role("radio")
    assert radios.evaluate_all("all => all.map(one => one.value)") == [
        "precision",
        "local",
        "accumulated",
    ]
    drawn = [canvas.evaluate("one => one.toDataURL()")]
    for name, said in (("own error", "by itself"), ("accumulated error", "before are in it")):
        graph.get_by_role("radio", name=name).check()
        settled(page)
        drawn.append(canvas.evaluate("one => one.toDataURL()"))
        legend = graph.locator(".legend:visible").inner_text()
        assert "60 dB or more" in legend and said in legend
    assert len({*drawn}) == 3


def test_the_graph_is_searched_and_hovered(opened: Callable[..., Any], html: str) -> None:
    page = opened(html)
    search = page.get_by_role("searchbox")
    search.fill("PRODUCT")
    assert page.locator(".found").inner_text() == "6 matches"
    search.fill("product4")
    search.press("Enter")
    assert page.locator(".found").inner_text() == "1 of 1"
    # The block that it is in was unfolded, and it is in the middle.
    assert settled(page)["chosen"] == "product4" and held(page)["boxes"] == "11"
    assert "MatMul" in page.locator(".details").inner_text()
    page.locator("canvas").hover()
    tip = page.locator(".tip")
    assert tip.is_visible() and "product4" in tip.inner_text() and "own SQNR: " in tip.inner_text()
    assert "accumulated SQNR: " in tip.inner_text()
    search.fill("no such thing")
    assert page.locator(".found").inner_text() == "0 matches"


def test_the_graph_is_walked_by_keyboard(opened: Callable[..., Any], html: str) -> None:
    page = opened(html)
    canvas = page.locator("canvas")
    page.locator(".graph button.fold").focus()
    page.keyboard.press("Tab")
    assert canvas.evaluate("one => one === document.activeElement")
    seen = []
    for key in (*["ArrowDown"] * 2, "Enter", *["ArrowDown"] * 2, "ArrowUp", "Escape"):
        page.keyboard.press(key)
        seen.append(settled(page)["chosen"])
    assert seen == ["x", "u1", "product0", "relu0", "sum0", "relu0", ""]
    scale = float(held(page)["scale"])
    page.keyboard.press("+")
    assert float(settled(page)["scale"]) > scale
    page.keyboard.press("0")
    found = settled(page)
    assert found["drawn"] == found["boxes"]
    assert page.locator(".details").inner_text() == "Nothing is chosen"


def test_a_hostile_model_runs_nothing(opened: Callable[..., Any]) -> None:
    page = opened(to_html(hostile_report(), [REPLAY]))
    page.get_by_role("searchbox").fill("script")
    page.get_by_role("searchbox").press("Enter")
    page.locator("canvas").hover()
    assert "<img src=x onerror=alert(2)>" in page.locator(".tip").inner_text()
    for point in page.locator(".chart .point").all()[:6]:
        point.hover(force=True)
    page.wait_for_timeout(200)
    assert page.locator("img, iframe, [onerror], a[href^=http], a[href^=javascript]").count() == 0
    assert page.locator(".hovertext").count() == 0 or page.locator(".hovertext img").count() == 0


PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: to_html(full(), [REPLAY]),
    "runs": lambda: sides.to_html(["a", "b"], [full(), a_report()]),
    "sensitivity": lambda: sensitivity_page(an_analysis(), "m.onnx"),
    "watch": lambda: watch_page(REPLAY, "bundle", "today.npz"),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(opened: Callable[..., Any], name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(PAGES[name](), color_scheme=scheme, viewport={"width": 900, "height": 800})
    for details in page.locator("details:not([open]) > summary").all():
        details.click()
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()
