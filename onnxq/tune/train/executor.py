"""A graph as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import nn

from onnxq.errors import InputError
from onnxq.ir import Graph, Node, OpaqueType, Tensor, Use, Value
from onnxq.ir.copying import reads
from onnxq.tune.train.dtypes import TORCH_TYPES, to_numpy, to_torch
from onnxq.tune.train.operators.normalization import BatchNormalization
from onnxq.tune.train.operators.pairs import folded
from onnxq.tune.train.operators.registry import Run, UnsupportedError, find

_LONGEST_SHAPE = 64
"""Integer constants of at most so many elements and one axis stay on the processor: shapes."""

_MOST_NAMED = 8
"""So many nodes that cannot run are named."""

_Scope: TypeAlias = dict[Any, torch.Tensor]
"""Tensors of one run, by `Value`, or by value and the functions that were put on it."""


@dataclass(frozen=True, eq=False)
class _Step:
    node: Node
    run: Run
    host: frozenset[int]
    holds_graphs: bool
    gives: tuple[Value | None, ...]
    dead: tuple[Value, ...]


class Executor(nn.Module):
    """Computes values of a graph from others, with gradients.

    Constants of floats are parameters where they are to be trained, and buffers elsewhere, so
    that ``to`` moves them; shapes stay on the processor. The graph is not changed until `store`,
    and must not change meanwhile. A function put on a value (`hook`) replaces it for all its
    readers or for some: fake quantization stands where a QDQ pair would.

    It starts in evaluation mode, like a model that is loaded; `train` as any module's.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        trainable: Callable[[Value], bool] | None = None,
        batch_norm: Literal["frozen", "train"] = "frozen",
        folds_pairs: bool = False,
    ) -> None:
        """Prepare to compute ``outputs`` from ``inputs``.

        Args:
            graph: A main graph with types inferred (`onnxq.ir.infer_types`).
            inputs: Names of the values to be fed, any of the graph's; those of its inputs that the
                outputs need if not given. Inputs with a default may be fed, too.
            outputs: Names of the values to give; the graph's outputs if not given.
            trainable: Which constants of floats are parameters; none if not given, and never the
                running statistics of BatchNormalization.
            batch_norm: Whether BatchNormalization uses the batch's statistics in training mode
                and keeps running ones, or stays as it is.
            folds_pairs: Compute QuantizeLinear and the DequantizeLinear behind it as one, which is
                faster. Nothing may be hooked to the integers between them then.

        Raises:
            InputError: there is no such value, a node cannot be computed in torch, or an input
                is needed that is not fed.
        """
        super().__init__()
        self._graph = graph
        self._freezes = batch_norm == "frozen"
        self._folds = folds_pairs
        given = [v for v in graph.inputs if v.data is None]
        self._inputs = given if inputs is None else [_find(graph, name) for name in inputs]
        self._outputs = (
            list(graph.outputs) if outputs is None else [_find(graph, name) for name in outputs]
        )
        self._constants = nn.Module()
        self._names: dict[Value, str] = {}
        self._shapes: dict[Value, torch.Tensor] = {}
        self._running: dict[Value, None] = {}
        self._on_value: dict[Value, tuple[nn.Module, ...]] = {}
        self._on_use: dict[Use, tuple[nn.Module, ...]] = {}
        self._functions = nn.ModuleList()
        self._modules_of_nodes = nn.ModuleList()
        nodes, read = self._needed()
        if inputs is None:
            self._inputs = [v for v in given if v in read]
        self._refuse(nodes)
        self._hold_constants(nodes, trainable)
        self._bodies: dict[Graph, list[_Step]] = {}
        self._steps = self._compiled(graph, nodes, {*self._outputs, *self._inputs})
        self.eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that have to be fed."""
        return tuple(v.name for v in self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values it gives."""
        return tuple(v.name for v in self._outputs)

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the outputs, by name.

        Raises:
            InputError: an input is not fed.
        """
        scope: _Scope = {}
        for value in self._inputs:
            if value.name not in feeds:
                raise InputError(f"input '{value.name}' is not fed; feed {', '.join(self.inputs)}")
            scope[value] = self._replaced(value, feeds[value.name])
        for value in self._graph.inputs:
            if value.data is not None and value.name in feeds:
                scope[value] = self._replaced(value, feeds[value.name])
        self._run(self._steps, scope)
        return {v.name: self._read(scope, v) for v in self._outputs}

    def evaluate(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs without gradients, from and to arrays, where the constants are."""
        device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        with torch.no_grad():
            found = self({name: to_torch(array).to(device) for name, array in feeds.items()})
        return {v.name: to_numpy(found[v.name], v.dtype) for v in self._outputs}

    def hook(
        self, value: Value | str, function: nn.Module, uses: Iterable[Use] | None = None
    ) -> None:
        """Replace a value by a function of it.

        Args:
            value: Whatever the graph feeds, holds or computes.
            function: From tensor to tensor. It becomes part of this module, and runs once in each
                pass, however many readers there are.
            uses: The readers that are to read the function's result; everybody, who gets the
                outputs included, if not given. Functions on one value, or on one use, run in the
                order they came; those on uses after those on the value.

        Raises:
            InputError: there is no such value.
        """
        found = _find(self._graph, value) if isinstance(value, str) else value
        if not any(function is known for known in self._functions):
            self._functions.append(function)
        if uses is None:
            self._on_value[found] = (*self._on_value.get(found, ()), function)
            return
        for use in uses:
            self._on_use[use] = (*self._on_use.get(use, ()), function)

    def constant(self, value: Value | str) -> torch.Tensor:
        """The parameter or buffer that holds a constant, without what is put on it.

        Raises:
            InputError: it holds no such constant.
        """
        found = _find(self._graph, value) if isinstance(value, str) else value
        if found in self._shapes:
            return self._shapes[found]
        if found not in self._names:
            raise InputError(f"'{found.name}' is no constant that the outputs need")
        held: torch.Tensor = getattr(self._constants, self._names[found])
        return held

    def store(self) -> None:
        """Write what was trained into the graph: parameters, and running statistics."""
        trained = dict(self._constants.named_parameters())
        for value, name in self._names.items():
            if name not in trained and (self._freezes or value not in self._running):
                continue
            data = Tensor(to_numpy(self.constant(value), value.dtype))
            if value.producer is not None:
                value.graph.set_attribute(value.producer, "value", data)
            else:
                value.data = data

    def train(self, mode: bool = True) -> Self:
        """Set training mode; BatchNormalization that is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.modules() if self._freezes else ():
            if isinstance(module, BatchNormalization):
                module.eval()
        return self

    # Preparing

    def _needed(self) -> tuple[list[Node], set[Value]]:
        """The nodes between inputs and outputs, in topological order, and what they read."""
        fed, read = set(self._inputs), set(self._outputs)
        found = []
        for node in reversed(self._graph.nodes()):
            if any(v in read and v not in fed for v in node.outputs):
                found.append(node)
                read.update(reads(node))
        missing = [v for v in self._graph.inputs if v in read and v not in fed and v.data is None]
        if missing:
            raise InputError(
                f"the outputs {', '.join(self.outputs)} need input '{missing[0].name}', too"
            )
        return found[::-1], read

    def _refuse(self, nodes: Sequence[Node]) -> None:
        """Name what cannot be computed."""
        reasons: dict[str, None] = {}
        for node in nodes:
            for inner in (node, *(n for g in node.subgraphs() for n in g.all_nodes())):
                if reason := _refusal(inner):
                    reasons[reason] = None
        if reasons:
            more = len(reasons) - _MOST_NAMED
            named = "; ".join([*reasons][:_MOST_NAMED])
            rest = f"; and {more} more" if more > 0 else ""
            raise InputError(f"the model cannot be computed in torch: {named}{rest}")

    def _hold_constants(
        self, nodes: Sequence[Node], trainable: Callable[[Value], bool] | None
    ) -> None:
        held = [v for v in self._outputs if v.data is not None]
        for node in nodes:
            inner = [n for g in node.subgraphs() for n in g.all_nodes()]
            held += [v for n in (node, *inner) for v in n.inputs if v is not None and v.data]
            held += [n.output for n in (node, *inner) if _is_constant(n)]
            bodies = [b for g in node.subgraphs() for b in g.all_graphs()]
            held += [v for body in bodies for v in body.outputs if v.data is not None]
            for each in (node, *inner):
                if each.is_op("BatchNormalization"):
                    self._running.update((v, None) for v in each.inputs[3:5] if v is not None)
        for value in dict.fromkeys(held):
            tensor = _constant_tensor(value)
            is_float = tensor.is_floating_point()
            if not is_float and tensor.ndim < 2 and tensor.numel() <= _LONGEST_SHAPE:
                self._shapes[value] = tensor
                continue
            # Modules split names at dots.
            name = f"{len(self._names)}:{value.name.replace('.', '/')}"
            self._names[value] = name
            trains = is_float and value not in self._running
            if trains and trainable is not None and trainable(value):
                self._constants.register_parameter(name, nn.Parameter(tensor))
            else:
                self._constants.register_buffer(name, tensor)

    def _compiled(
        self, graph: Graph, nodes: Sequence[Node], kept: Collection[Value]
    ) -> list[_Step]:
        last = {v: at for at, node in enumerate(nodes) for v in reads(node) if v.graph is graph}
        steps = []
        inner: set[Node] = set()
        for at, node in enumerate(nodes):
            if _is_constant(node) or node in inner:
                continue
            found = find(node)
            assert found is not None
            pair = folded(node, kept) if self._folds else None
            run = found.build(node) if pair is None else pair.run
            if isinstance(run, nn.Module):
                self._modules_of_nodes.append(run)
            inner.update(() if pair is None else pair.behind)
            gives = tuple(node.outputs if pair is None else pair.gives)
            made = [v for v in gives if v is not None and v not in last]
            dead = {*made, *(v for v in reads(node) if last.get(v) == at)}.difference(kept)
            steps.append(_Step(node, run, found.host, found.holds_graphs, gives, tuple(dead)))
            for body in node.subgraphs():
                self._bodies[body] = self._compiled(body, body.nodes(), set(body.outputs))
        return steps

    # Running

    def _run(self, steps: Sequence[_Step], scope: _Scope) -> None:
        for step in steps:
            node = step.node
            given = [
                None if v is None else self._read(scope, v, Use(node, slot))
                for slot, v in enumerate(node.inputs)
            ]
            arguments: list[Any] = _together(given, step.host)
            if step.holds_graphs:
                arguments.insert(0, partial(self._call, node, scope))
            made = step.run(*arguments)
            results = (made,) if isinstance(made, torch.Tensor) else made
            for value, result in zip(step.gives, results, strict=False):
                if value is not None:
                    scope[value] = self._replaced(value, result)
            for value in step.dead:
                self._forget(scope, value)

    def _call(
        self, node: Node, scope: _Scope, attribute: str, inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        body: Graph = node.get(attribute)
        for value, tensor in zip(body.inputs, inputs, strict=True):
            scope[value] = self._replaced(value, tensor)
        self._run(self._bodies[body], scope)
        return [self._read(scope, v) for v in body.outputs]

    def _read(self, scope: _Scope, value: Value, use: Use | None = None) -> torch.Tensor:
        tensor = scope.get(value)
        if tensor is None:
            tensor = self._replaced(value, self.constant(value))
            scope[value] = tensor
        chain = self._on_use.get(use, ()) if use is not None else ()
        for count, function in enumerate(chain, 1):
            key = (value, chain[:count])
            if key not in scope:
                scope[key] = function(tensor)
            tensor = scope[key]
        return tensor

    def _replaced(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        for function in self._on_value.get(value, ()):
            tensor = function(tensor)
        return tensor

    def _forget(self, scope: _Scope, value: Value) -> None:
        scope.pop(value, None)
        for use in value.uses:
            chain = self._on_use.get(use, ())
            for count in range(1, len(chain) + 1):
                scope.pop((value, chain[:count]), None)


def _find(graph: Graph, name: str) -> Value:
    value = graph.find(name)
    if value is None:
        raise InputError(f"the model has no tensor '{name}'")
    return value


def _is_constant(node: Node) -> bool:
    return node.is_op("Constant")


def _refusal(node: Node) -> str:
    """Why a node cannot be computed; empty if it can."""
    found = find(node)
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if _is_constant(node):
        kinds = [name for name in node.attributes if name not in _CONSTANTS]
        return f"{node.label} holds {kinds[0]}" if kinds else ""
    if found is None:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return f"{node.label}: there is no {name}"
    for value in values:
        if isinstance(value.type, OpaqueType):
            return f"{node.label}: '{value.name}' is a {value.type}"
        if value.dtype is not None and value.dtype not in TORCH_TYPES:
            return f"{node.label}: '{value.name}' is {value.dtype.label}, which torch does not have"
    try:
        found.build(node)
    except UnsupportedError as error:
        return f"{node.label} {error}"
    return ""


_CONSTANTS: dict[str, type] = {
    "value": np.float32,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _constant_tensor(value: Value) -> torch.Tensor:
    if value.data is not None:
        return to_torch(value.data.numpy())
    assert value.producer is not None
    ((name, attribute),) = value.producer.attributes.items()
    held = attribute.plain()
    array = held.numpy() if isinstance(held, Tensor) else np.array(held, dtype=_CONSTANTS[name])
    return to_torch(array)


def _together(
    tensors: Sequence[torch.Tensor | None], host: Collection[int]
) -> list[torch.Tensor | None]:
    """All on one device, except what is read as Python numbers."""
    devices = {t.device for t in tensors if t is not None}
    if len(devices) < 2:
        return list(tensors)
    device = next(d for d in devices if d.type != "cpu")
    return [t if t is None or slot in host else t.to(device) for slot, t in enumerate(tensors)]
