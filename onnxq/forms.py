"""Equal forms of a float model, its opset among them: which of them is the fastest here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxq.cost.bench import Bench, Feeds
from onnxq.cost.measure import by_node
from onnxq.errors import InputError
from onnxq.ir import Context, FormPass, Graph, Pipeline, Value, infer_types, parse_passes
from onnxq.ir.blocks import excerpt
from onnxq.ir.regions import around, kind_of
from onnxq.passes.notes import node_name
from onnxq.passes.static.placement import place
from onnxq.plan.apply import apply_precisions, float_graph, float_passes
from onnxq.precision import FLOAT, Given, parse_precision
from onnxq.progress import SILENT, Progress
from onnxq.registry import split_forms
from onnxq.targets import Target

_GAIN = 1.015
"""A form is kept if it makes the whole model so many times as fast: less is within the noise."""

_OPSET_GAIN = 1.005
"""The same for opsets, which are timed for longer: operators that are fused lose less, too."""

_CLOSE = 1.25
"""Precisions count in which the model is at most so many times slower than in the fastest."""

_FLOAT_SHARE = 0.1
"""How much the time in float counts where it is not close: mixtures leave a part in float."""

_WORTH = 0.01
"""Share of the model's time that regions must promise to gain before the whole is timed."""

_SECONDS_EACH = 0.25
_RUNS_EACH = 60
"""A model is timed for so long, or for so many inferences where those take less."""

_POSITIVE = ("Clip", "HardSigmoid", "Relu", "Sigmoid", "Softmax")
"""Operators whose results are not below 0: their clipping is left to the requantization."""


@dataclass(frozen=True)
class FloatForm:
    """One of the equal forms of a float model.

    Attributes:
        passes: Float passes in text form, with the regions that forms are left out of.
        opset: The lowest opset that will do.
    """

    passes: str
    opset: int

    def with_pass(self, step: FormPass, without: Sequence[str] = ()) -> FloatForm:
        """The same with a pass that spares some regions."""
        others = [p for p in split_forms(self.passes) if p.partition("{")[0].strip() != step.name]
        passes = ",".join([*others, str(replace(step, without=tuple(without)))])
        return replace(self, passes=passes)


@dataclass(frozen=True)
class Trial:
    """Where forms are tried.

    Attributes:
        target: Where the model is to run; it names the forms to try.
        feeds: Gives what to run the model on, once there is something to try.
        bench: What measures.
        precisions: What nodes may be given afterwards.
        keep_float: Names of nodes that are to stay in float.
        opset_is_free: Whether the opset may be raised.
        progress: Told of the stage.
    """

    target: Target
    feeds: Callable[[], Feeds]
    bench: Bench
    precisions: tuple[str, ...] = ()
    keep_float: Collection[str] = ()
    opset_is_free: bool = True
    progress: Progress = SILENT


def fastest_form(
    source: Graph, lowest: FloatForm, trial: Trial
) -> tuple[FloatForm, tuple[str, ...]]:
    """The fastest of the forms that a model can have, and what was found, in sentences.

    First come the opsets at which a pass finds more, or the target has a kernel for an operator.
    Then, for each form that the target names and the model has regions for: what a region takes
    with and without it is read from profiles, equal regions taken together, and the form is left
    out of those that lose. Whatever seems to gain is timed as a whole model in turn with what was
    best before, and dropped unless it is faster. Models are timed with all nodes in one precision,
    in each that is close to the fastest, and float counts a little: mixtures are made of these.
    Where blocks repeat, a part of the model with two of each stands for it. Regions in bodies of
    If, Loop and Scan are measured like any other.

    Args:
        source: The model as loaded, which is left as it is.
        lowest: The form at the lowest opset that will do.
        trial: Where to try.

    Raises:
        InputError: the model cannot be run on the feeds.
    """
    search = _Search(source, lowest, trial)
    search.run()
    return search.best, tuple(search.notes)


class _Search:
    def __init__(self, source: Graph, lowest: FloatForm, trial: Trial) -> None:
        self.best = lowest
        self.notes: list[str] = []
        self._source = source
        self._trial = trial
        self._seconds = _SECONDS_EACH
        self._weights = dict.fromkeys((FLOAT, *trial.precisions), 1.0)
        self._known: dict[tuple[bool, FloatForm], tuple[Graph, Context]] = {}

    def run(self) -> None:
        trial = self._trial
        trial.progress.stage("comparing forms")
        graph, context = self._made(self._source, self.best)
        opsets = self._useful_opsets(graph)
        forms = [
            step for step in form_passes(trial.target) if self._has_regions(step, graph, context)
        ]
        if not opsets and not forms:
            return
        typed = self._source.copy()
        infer_types(typed)
        part = excerpt(typed)
        self._part = self._source if part is typed else part
        feeds = trial.feeds()
        self._feeds = {v.name: feeds[v.name] for v in self._part.inputs if v.name in feeds}
        self._drop_slow_precisions()
        self._choose_opset(opsets)
        for step in forms:
            self._choose_form(step)

    def _made(self, source: Graph, form: FloatForm) -> tuple[Graph, Context]:
        """The float graph in a form, and what its passes told; neither is to be changed."""
        key = (source is self._source, form)
        if key not in self._known:
            context = Context()
            graph, _ = float_graph(source, form.passes, self._trial.target, form.opset, context)
            self._known[key] = graph, context
        return self._known[key]

    # The opset

    def _useful_opsets(self, graph: Graph) -> list[int]:
        """Opsets above that of a float graph at which something is gained, ascending."""
        target = self._trial.target
        found = {
            opset
            for step in float_passes(self.best.passes, target.passes)
            for opset in step.higher_opsets(graph)
        }
        kinds = {node.op_type for node in graph.all_nodes() if not node.domain}
        found |= {target.operators[kind].minimum_opset for kind in kinds & target.operators.keys()}
        return sorted(o for o in found if o > graph.opset) if self._trial.opset_is_free else []

    def _choose_opset(self, opsets: Sequence[int]) -> None:
        """The lowest of those opsets that make the model as fast as any does."""
        forms = [self.best, *(replace(self.best, opset=opset) for opset in opsets)]
        times: dict[FloatForm, float] = {}
        while len(forms) > 1 and not times:
            try:
                times = self._times(forms, 2.0)
            except InputError:
                # The model cannot be raised to the highest one, or the runtime does not know it.
                forms.pop()
        if not times:
            return
        limit = min(times.values()) * _OPSET_GAIN
        chosen = next(form for form in forms if times[form] <= limit)
        self._keep(chosen, f"opset {chosen.opset}", times, _OPSET_GAIN)

    def _keep(
        self, form: FloatForm, what: str, times: Mapping[FloatForm, float], least: float = _GAIN
    ) -> None:
        gain = times[self.best] / times[form]
        if gain >= least and form != self.best:
            self.notes.append(f"Measured here: {what} makes the model {gain:.3g} times as fast.")
            self.best = form

    # Forms of regions

    def _has_regions(self, step: FormPass, graph: Graph, context: Context) -> bool:
        if context.regions.get(step.name):
            return True
        if self._trial.opset_is_free and step.higher_opsets(graph):
            return True
        return Pipeline((step,), fixed_point=False).run(graph.copy())[0].rewrites > 0

    def _choose_form(self, step: FormPass) -> None:
        graph, context = self._made(self._source, self.best)
        is_on = bool(context.regions.get(step.name))
        higher = step.higher_opsets(graph) if self._trial.opset_is_free and not is_on else ()
        everywhere = replace(self.best, opset=max(graph.opset, *higher, 0)).with_pass(step)
        try:
            whole, regions = self._regions(self._source, everywhere, step)
            gains = self._gains(step, everywhere)
            kinds = {kind for kind, gain in gains.items() if (gain < 0) == is_on}
            values = _values(whole)
            if sum(abs(gains[kind]) for kind in kinds) < _WORTH:
                return
            # What is to be other than it was: left out where the form stands, put in where not.
            without = [n for n in regions if (kind_of(values[n]) in kinds) == is_on]
            chosen = everywhere.with_pass(step, without)
            used = f"{len(regions) - len(without)} of {len(regions)} regions"
            self._keep(chosen, f"{step.name} in {used}", self._times([self.best, chosen]))
        except InputError:
            # The model has no such opset, or the runtime no such operator.
            return

    def _regions(self, source: Graph, form: FloatForm, step: FormPass) -> tuple[Graph, list[str]]:
        """A float graph, and the values in it that a form's regions compute."""
        graph, context = self._made(source, form)
        names = set(context.regions[step.name])
        made = (v for node in graph.all_nodes() for v in node.outputs if v is not None)
        return graph, [value.name for value in made if value.name in names]

    def _gains(self, step: FormPass, everywhere: FloatForm) -> dict[Hashable, float]:
        """Share of the model's time that all regions of a kind save by a form."""
        with_it, regions = self._regions(self._part, everywhere, step)
        without_it, _ = self._made(self._part, everywhere.with_pass(step, regions))
        after, before = self._profiles(with_it, without_it)
        kinds: dict[Hashable, list[str]] = {}
        values = _values(with_it)
        for name in regions:
            kinds.setdefault(kind_of(values[name]), []).append(name)
        gains = {
            kind: _spent(before, without_it, with_it, names)
            - _spent(after, with_it, without_it, names)
            for kind, names in kinds.items()
        }
        # What the profile has under no node's name is shared by all regions.
        rest = sum(before.values()) - sum(after.values()) - sum(gains.values())
        for kind, names in kinds.items():
            gains[kind] = (gains[kind] + rest * len(names) / len(regions)) / sum(before.values())
        return gains

    # Measuring

    def _quantized(self, graph: Graph) -> dict[str, Graph]:
        """By precision, the model with all nodes in it; times do not depend on the ranges."""
        target, keep = self._trial.target, frozenset(self._trial.keep_float)
        placed = place(graph, target, keep)
        bounds = {
            value.name: (0.0 if value.producer and value.producer.is_op(*_POSITIVE) else -1.0, 1.0)
            for value in graph.values.values()
        }
        made = {}
        for text in self._weights:
            precision = parse_precision(text)
            wanted = {
                node_name(node): text
                for node in graph.nodes()
                if text != FLOAT and precision.refusal(node, placed) is None
            }
            for name in keep:
                wanted.pop(name, None)
            if wanted or text == FLOAT:
                made[text] = graph.copy()
                apply_precisions(made[text], wanted, Given(target, bounds))
        return made

    def _drop_slow_precisions(self) -> None:
        models = self._quantized(self._made(self._part, self.best)[0])
        times = self._trial.bench.times(models, self._feeds, seconds=self._seconds)
        fastest = min(times.values())
        self._seconds = min(_SECONDS_EACH, _RUNS_EACH * max(times.values()) / 1000)
        self._weights = {text: 1.0 for text, ms in times.items() if ms <= fastest * _CLOSE}
        self._weights.setdefault(FLOAT, _FLOAT_SHARE)

    def _times(self, forms: Sequence[FloatForm], longer: float = 1.0) -> dict[FloatForm, float]:
        """Milliseconds of each form in all precisions that count, weighted, run in turn."""
        models: dict[tuple[FloatForm, str], Graph] = {}
        for form in forms:
            quantized = self._quantized(self._made(self._part, form)[0])
            models |= {(form, text): graph for text, graph in quantized.items()}
        named = {f"{at}": graph for at, graph in enumerate(models.values())}
        spent = self._trial.bench.times(named, self._feeds, seconds=longer * self._seconds)
        times: dict[FloatForm, float] = {}
        for (form, text), ms in zip(models, spent.values(), strict=True):
            times[form] = times.get(form, 0.0) + ms * self._weights[text]
        return times

    def _profiles(self, *graphs: Graph) -> list[dict[str, float]]:
        """Milliseconds by node of each float graph in all precisions that count, weighted."""
        models = {
            f"{at} {text}": graph
            for at, own in enumerate(graphs)
            for text, graph in self._quantized(own).items()
        }
        profiles = self._trial.bench.profiles(models, self._feeds)
        found: list[dict[str, float]] = [{} for _ in graphs]
        for name, times in profiles.items():
            at, text = name.split(" ", 1)
            own = found[int(at)]
            for node, ms in by_node(graphs[int(at)], times).items():
                own[node] = own.get(node, 0.0) + ms * self._weights[text]
        return found


def form_passes(target: Target) -> list[FormPass]:
    """The passes that write the forms a target names.

    Raises:
        InputError: it names one that is not there, or that writes no form of regions.
    """
    steps = parse_passes(",".join(target.forms)) if target.forms else ()
    found = [step for step in steps if isinstance(step, FormPass)]
    for step in steps:
        if step not in found:
            raise InputError(f"the pass '{step.name}' writes no form that regions can go without")
    return found


def _values(graph: Graph) -> dict[str, Value]:
    """Values of a float graph, in which those of all bodies have names of their own."""
    return {name: value for scope in graph.all_graphs() for name, value in scope.values.items()}


def _spent(times: Mapping[str, float], graph: Graph, other: Graph, regions: Sequence[str]) -> float:
    """Milliseconds of some regions and what stands around them."""
    values, shared = _values(graph), _values(other)
    nodes: set[str] = set()
    for name in regions:
        nodes.update(map(node_name, around(values[name], shared)))
    return sum(times.get(name, 0.0) for name in nodes)
