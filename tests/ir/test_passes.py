from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxq.passes
import onnxq.registry
from onnxq.errors import InputError, InvariantError
from onnxq.ir import (
    Context,
    DataType,
    Graph,
    Pass,
    Pipeline,
    TensorType,
    available_passes,
    default_passes,
    parse_passes,
)

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
CHAIN = HEAD + "g (float[2] x) => (float[2] y) { a = Neg(x)  b = Neg(a)  y = Abs(b) }"


@dataclass(frozen=True)
class Swap(Pass):
    """Turns operators of one type into another."""

    name: ClassVar[str] = "swap"

    source: str = "Neg"
    target: str = "Abs"
    limit: int = 1
    ratio: float = 0.5
    deep: bool = True
    names: tuple[str, ...] = ()
    kept: list[int] = field(default_factory=lambda: [1])

    def run(self, graph: Graph, ctx: Context) -> int:
        made = 0
        for node in graph.nodes():
            if made < self.limit and node.is_op(self.source):
                new = graph.add(self.target, node.inputs)
                ctx.rewrote(f"{node.label}: swapped")
                graph.replace_uses(node.output, new.output)
                graph.remove(node)
                made += 1
        return made


@dataclass(frozen=True)
class Merge(Pass):
    """Lets the second of two Relus read past the first."""

    name: ClassVar[str] = "merge"

    def run(self, graph: Graph, ctx: Context) -> int:
        made = 0
        for node in graph.nodes():
            value = node.inputs[0]
            first = value.producer if value is not None else None
            if node.is_op("Relu") and first is not None and first.is_op("Relu"):
                node.set_input(0, first.inputs[0])
                graph.remove(first)
                made += 1
        return made


@dataclass(frozen=True)
class Break(Pass):
    """Leaves an invalid graph."""

    name: ClassVar[str] = "break"

    def run(self, graph: Graph, ctx: Context) -> int:
        graph.values["x"]._uses.clear()
        return 1


@dataclass(frozen=True)
class Look(Pass):
    """Counts what has no type; rewrites nothing."""

    name: ClassVar[str] = "look"
    needs_types: ClassVar[bool] = True
    seen: ClassVar[list[int]] = []

    def run(self, graph: Graph, ctx: Context) -> int:
        self.seen.append(sum(v.type is None for v in graph.values.values()))
        return 0


@dataclass(frozen=True)
class Choose(Pass):
    """Has options of every shape; rewrites nothing."""

    name: ClassVar[str] = "choose"

    axis: int
    limit: int | None = None
    ratio: Optional[float] = None  # noqa: UP045
    names: tuple[str, ...] | None = ("a",)
    form: Literal["rows", "columns"] | None = None
    label: str | None = "none"
    anything: Any = None
    derived: int = field(init=False, default=7)

    def run(self, graph: Graph, ctx: Context) -> int:
        return 0


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of passes, installed through an entry point of its own."""
    module = ModuleType("third_party")
    for kind in (Swap, Break, Look):
        monkeypatch.setattr(kind, "__module__", "third_party")
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "third_party", module)
    install(monkeypatch, "third_party")
    yield module


def install(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Let these be the entry points of the passes, beside the built-in ones."""
    entries = [
        EntryPoint(f"e{at}", value, onnxq.ir.passes.ENTRY_POINT_GROUP)
        for at, value in enumerate(("onnxq.passes", *values))
    ]
    monkeypatch.setattr(onnxq.registry, "entry_points", lambda group: entries)


# Text form


def test_text_names_what_differs_from_the_default() -> None:
    assert str(Swap()) == "swap"
    assert str(Swap(limit=3)) == "swap{limit=3}"
    assert str(Swap("Relu", ratio=1.0, deep=False)) == (
        "swap{source='Relu', ratio=1.0, deep=False}"
    )


texts = st.text("aZ09-_.,={}()[]'\"\\ ", min_size=0, max_size=6)


@given(
    source=texts,
    limit=st.integers(-5, 5),
    ratio=st.floats(allow_nan=False),
    deep=st.booleans(),
    names=st.lists(texts, max_size=2).map(tuple),
    kept=st.lists(st.integers(), max_size=2),
)
def test_text_round_trip(
    source: str, limit: int, ratio: float, deep: bool, names: tuple[str, ...], kept: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxq.ir.passes, "available_passes", lambda: {"swap": Swap, "look": Look})
        one = Swap(source, "Abs", limit, ratio, deep, names, kept)
        assert parse_passes(f"{one}, look,{Swap()}") == (one, Look(), Swap())


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("swap", Swap()),
        (" swap { limit = 3 , source = Relu } ", Swap("Relu", limit=3)),
        ("swap{deep=false}", Swap(deep=False)),
        ("swap{deep=True, ratio=2}", Swap(ratio=2.0)),
        ("swap{source='a,b}'}", Swap("a,b}")),
        ("swap{source=1, ratio=inf}", Swap("1", ratio=float("inf"))),
        ("swap{}", Swap()),
        ("swap{names=('a', 'b'), limit=2}", Swap(names=("a", "b"), limit=2)),
    ],
)
def test_reading(installed: ModuleType, text: str, wanted: Swap) -> None:
    assert parse_passes(text) == (wanted,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no pass is named"),
        (" , ", "no pass is named"),
        ("nope", r"there is no pass 'nope'; available: .*swap"),
        ("swap{limit=1", r"cannot read the pass 'swap\{limit=1'"),
        ("swap limit=1", "cannot read the pass 'swap limit=1'"),
        ("swap{speed=1}", r"the pass swap has no option 'speed'; it has: source, .*limit"),
        ("swap{limit}", "the pass swap needs a value; write swap.limit=..."),
        ("swap{=1}", "the pass swap has no option"),
        ("look{limit=1}", "the pass look has no option 'limit'; it has: none"),
        ("swap{limit=many}", "option 'limit' of pass swap takes int, not 'many'"),
        ("swap{limit=1.5}", "option 'limit' of pass swap takes int, not '1.5'"),
        ("swap{limit=true}", "option 'limit' of pass swap takes int, not 'true'"),
        ("swap{deep=1}", "option 'deep' of pass swap takes bool, not '1'"),
        ("swap{ratio=true}", "option 'ratio' of pass swap takes float, not 'true'"),
        ("swap{ratio=fast}", "option 'ratio' of pass swap takes float, not 'fast'"),
        ("swap{limit=}", "option 'limit' of pass swap takes int, not ''"),
    ],
)
def test_what_cannot_be_read(installed: ModuleType, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_passes(text)
    assert "\n" not in str(caught.value)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxq.ir.passes, "available_passes", lambda: {"choose": Choose})


@given(
    limit=st.none() | st.integers(),
    ratio=st.none() | st.floats(allow_nan=False),
    names=st.none() | st.lists(texts, max_size=2).map(tuple),
    label=st.none() | texts | st.just("None"),
    anything=st.none() | st.booleans() | st.dictionaries(texts, st.integers(), max_size=2),
)
def test_text_round_trip_of_options_that_may_be_none(
    limit: int | None,
    ratio: float | None,
    names: tuple[str, ...] | None,
    label: str | None,
    anything: Any,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxq.ir.passes, "available_passes", lambda: {"choose": Choose})
        one = Choose(0, limit, ratio, names, "rows", label, anything)
        assert parse_passes(str(one)) == (one,)


def test_text_names_options_without_a_default_and_no_derived_ones() -> None:
    assert str(Choose(axis=1)) == "choose{axis=1}"
    assert str(Choose(axis=1, limit=3, names=None)) == "choose{axis=1, limit=3, names=None}"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("choose{axis=1}", Choose(1)),
        ("choose{axis=1, limit=none}", Choose(1)),
        ("choose{axis=1, limit=64, ratio=2}", Choose(1, limit=64, ratio=2.0)),
        ("choose{axis=1, form=columns, label=3}", Choose(1, form="columns", label="3")),
        ("choose{axis=1, label=None, anything=True}", Choose(1, label=None, anything=True)),
    ],
)
def test_reading_options_that_may_be_none(choose: None, text: str, wanted: Choose) -> None:
    (made,) = parse_passes(text)
    assert made == wanted
    assert [type(v) for v in vars(made).values()] == [type(v) for v in vars(wanted).values()]


@pytest.mark.parametrize(
    "text, message",
    [
        ("choose", r"the pass choose needs option 'axis'; write choose\{axis=\.\.\.\}"),
        ("choose{axis=none}", "option 'axis' of pass choose takes int, not 'none'"),
        ("choose{axis=1, limit=2.5}", "option 'limit' of pass choose takes int or None, not '2.5'"),
        ("choose{axis=1, limit=true}", "takes int or None, not 'true'"),
        ("choose{axis=1, names=3}", "option 'names' of pass choose takes tuple or None, not '3'"),
        ("choose{axis=1, derived=3}", "the pass choose has no option 'derived'"),
    ],
)
def test_options_that_cannot_be_read(choose: None, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_passes(text)


def test_options_annotated_for_type_checkers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the annotation cannot be resolved, the default tells the type."""
    for name in ("axis", "limit", "label"):
        monkeypatch.setitem(Choose.__annotations__, name, "Unknown")
    monkeypatch.setattr(onnxq.ir.passes, "available_passes", lambda: {"choose": Choose})
    assert parse_passes("choose{axis=1, limit=2, label=3}") == (Choose(1, limit=2, label="3"),)


# Which passes there are


def test_built_in_passes_are_found_through_the_entry_point() -> None:
    found = available_passes()
    assert {"fold-constants", "eliminate-dead", "fuse-batch-norm"} <= set(found)
    assert list(found) == sorted(found)
    assert all(kind.name == name and kind.__doc__ for name, kind in found.items())
    for name in found:
        (one,) = parse_passes(name)
        assert type(one) is found[name]


def test_third_parties_add_passes(installed: ModuleType) -> None:
    found = available_passes()
    assert found["swap"] is Swap and found["look"] is Look and "fold-constants" in found


def test_an_entry_point_may_name_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("third_party")
    module.Swap, module.Other, module.text = Swap, object, "text"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third_party", module)
    install(monkeypatch, "third_party:Swap", "third_party:Other", "third_party:text")
    assert available_passes()["swap"] is Swap


@pytest.mark.parametrize("value", ["no_such_module", "onnxq.passes:NoSuchClass"])
def test_entry_point_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install(monkeypatch, value)
    with pytest.raises(InputError, match=f"entry point 'e1' \\({value}\\) cannot be loaded"):
        available_passes()


@pytest.mark.parametrize("broken", ["inner/broken.py", "broken/__init__.py"])
@pytest.mark.parametrize(
    "source, said", [("import no_such_module", "no_such_module"), ("1 / 0", "division")]
)
def test_a_package_with_a_module_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str, source: str, said: str
) -> None:
    package = tmp_path / "brought"
    for file in ("__init__.py", "inner/__init__.py", broken):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(source if file == broken else "")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "brought")
    module = f"brought.{broken.split('.')[0].removesuffix('/__init__').replace('/', '.')}"
    try:
        with pytest.raises(InputError, match=rf"'e1' \(brought\).*{module}: .*{said}") as caught:
            available_passes()
        assert "\n" not in str(caught.value)
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "brought"]:
            del sys.modules[name]


def test_two_passes_of_one_name(monkeypatch: pytest.MonkeyPatch, installed: ModuleType) -> None:
    monkeypatch.setattr(Swap, "name", "fold-constants")
    with pytest.raises(InputError, match="each of two packages has a pass 'fold-constants'"):
        available_passes()


def test_default_passes_come_in_an_order_that_fits() -> None:
    order = [step.name for step in default_passes()]
    assert set(order) == {n for n, kind in available_passes().items() if kind.default}
    for step in default_passes():
        for before in step.after:
            assert before not in order or order.index(before) < order.index(step.name)


def test_default_order_follows_after_whatever_the_names(
    monkeypatch: pytest.MonkeyPatch, installed: ModuleType
) -> None:
    monkeypatch.setattr(Swap, "default", True)
    monkeypatch.setattr(Break, "default", True)
    monkeypatch.setattr(Break, "after", ("swap", "not-installed"))
    order = [step.name for step in default_passes()]
    assert order.index("break") > order.index("swap")
    assert "look" not in order


def test_a_default_pass_that_needs_an_option(monkeypatch: pytest.MonkeyPatch, choose: None) -> None:
    monkeypatch.setattr(Choose, "default", True)
    with pytest.raises(InputError, match="the pass choose needs option 'axis'"):
        default_passes()


def test_a_pass_takes_any_opset_unless_it_says_otherwise() -> None:
    assert Swap().needed_opset == 0


def test_a_default_pass_changes_no_results_beyond_rounding() -> None:
    assert all(step.numerics in ("exact", "reassociates") for step in default_passes())


# Pipelines


def test_records_and_fixed_point() -> None:
    graph = Graph.from_text(CHAIN)
    swap, relu = Swap(limit=1), Swap("Abs", "Relu", limit=1)
    records = Pipeline((swap, relu)).run(graph)
    assert [n.op_type for n in graph.nodes()] == ["Relu", "Relu", "Relu"]
    assert [(r.name, r.rewrites, r.nodes_before, r.nodes_after) for r in records] == [
        ("swap", 2, 3, 3),
        ("swap", 3, 3, 3),
    ]
    assert all(r.seconds > 0 for r in records)


def test_a_record_counts_only_the_nodes_of_its_own_pass() -> None:
    graph = Graph.from_text(HEAD + "g (float[2] x) => (float[2] y) { a = Relu(x)  y = Relu(a) }")
    records = Pipeline((Swap(), Merge())).run(graph)
    assert [(r.name, r.rewrites, r.nodes_before, r.nodes_after) for r in records] == [
        ("swap", 0, 2, 2),
        ("merge", 1, 2, 1),
    ]


def test_without_a_fixed_point_each_runs_once() -> None:
    graph = Graph.from_text(CHAIN)
    records = Pipeline((Swap(),), fixed_point=False).run(graph)
    assert [r.rewrites for r in records] == [1]
    assert [n.op_type for n in graph.nodes()] == ["Abs", "Neg", "Abs"]


def test_passes_that_undo_each_other_are_named() -> None:
    pair = (Swap(limit=9), Swap("Abs", "Neg", limit=9))
    with pytest.raises(InvariantError, match="swap, swap undo each other's rewrites without end"):
        Pipeline(pair, max_rounds=5).run(Graph.from_text(CHAIN))


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    with pytest.raises(InvariantError, match=r"pass break left an invalid graph: .*'x'"):
        Pipeline((Swap(), Break())).run(Graph.from_text(CHAIN))


def test_types_are_inferred_for_those_that_need_them() -> None:
    graph = Graph.from_text(CHAIN)
    Look.seen.clear()
    Pipeline((Look(), Swap(limit=1), Look())).run(graph)
    # What a rewrite adds has a type again when the next pass looks.
    assert set(Look.seen) == {0} and len(Look.seen) >= 4
    assert graph.values["a" if "a" in graph.values else "y"].type == TensorType(
        DataType.FLOAT, (2,)
    )
    untyped = Graph.from_text(CHAIN)
    Pipeline((Swap(),)).run(untyped)
    assert any(v.type is None for v in untyped.values.values())


def log_of(debug: int) -> list[str]:
    lines: list[str] = []
    Pipeline((Swap(limit=9),)).run(Graph.from_text(CHAIN), Context(debug, lines.append))
    return lines


def test_debug_lines() -> None:
    assert log_of(0) == []
    first, second = log_of(1)
    assert first.startswith("  swap{limit=9}: 2 rewrites, ") and first.endswith("3 -> 3 nodes")
    assert second.startswith("  swap{limit=9}: 0 rewrites, ")
    assert [line for line in log_of(2) if "swapped" in line] == [
        "    Neg making 'a': swapped",
        "    Neg making 'b': swapped",
    ]
    assert len(log_of(2)) == 4
    texts = [line for line in log_of(3) if line.startswith("g (")]
    assert len(texts) == 1 and "Abs(%" in texts[0]


def test_debug_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Context(debug=2).rewrote("something")
    printed = capsys.readouterr()
    assert printed.err == "    something\n" and printed.out == ""
