"""Choosing a precision for every node: an exact integer program.

The program chooses one precision per node so that the sum of the nodes' costs and of the costs of
all borders between integers and floats is least, while the sum of the nodes' predicted losses
stays within a budget; or the other way round.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from onnxq.errors import InvariantError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Objective = Literal["cost", "loss"]
Wanted = Callable[["Choice"], bool]

_NOTHING = 1e-300
"""Budgets below count as 0: their reciprocals overflow."""

_REDIRECTING = threading.Lock()
"""Standard output belongs to the process, not to a thread."""

_GAP = 1e-4
"""Relative distance from the optimum at which an assignment counts as best: costs are measured to
a hundredth at most."""

_PRICES = 40
"""Prices that the heuristic tries."""

TIME_LIMIT = 30.0
"""Seconds after which the exact search gives way to `_tightened`."""


@dataclass(frozen=True)
class Choice:
    """One precision a node may have.

    Attributes:
        precision: Its name, as in the glossary: ``float32``, ``int8``, ``int8-dynamic``, ...
        cost: What the node costs in it: milliseconds, bytes or operations.
        loss: How much noise it adds to the model's outputs; losses of nodes add up.
        reads_integers: Whether it reads its activations as integers.
        gives_integers: Whether it gives integers; None where it gives either at the same cost.
        bytes: What the node's weights take in it.
    """

    precision: str
    cost: float
    loss: float = 0.0
    reads_integers: bool = False
    gives_integers: bool | None = False
    bytes: float = 0.0


@dataclass(frozen=True)
class Item:
    """A node with its choices.

    Attributes:
        name: The node's name.
        choices: At least one; names of precisions are unique.
        follows: Nodes that must give integers where this one reads integers: it has no kernel for
            a mixture.
        serves: Nodes of which at least one must read integers where this one gives integers;
            empty where it may give them for nothing.
        moves: Nodes whose precision this one must have where it reads integers: it gives what they
            gave.
    """

    name: str
    choices: tuple[Choice, ...]
    follows: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()


@dataclass(frozen=True)
class Border:
    """A value at which integers and floats may meet.

    Attributes:
        value: The value's name.
        producer: The node that gives it; None if it is always given as floats.
        readers: Nodes with choices that read it as an activation.
        read_as_float: Whether something without a choice reads it, too: as floats.
        quantize: Cost of turning it into integers, once for all readers.
        dequantize: Cost of turning it into floats, once for all readers.
    """

    value: str
    producer: str | None
    readers: tuple[str, ...]
    read_as_float: bool
    quantize: float
    dequantize: float


@dataclass(frozen=True)
class Problem:
    """Nodes, borders, groups of nodes that must have one precision, and the room for weights.

    Without ``room`` bytes do not count.
    """

    items: tuple[Item, ...]
    borders: tuple[Border, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    room: float | None = None

    def cost(self, precisions: Mapping[str, str]) -> float:
        """Cost of an assignment, borders included."""
        chosen = self._chosen(precisions)
        total = sum(c.cost for c in chosen.values())
        for border in self.borders:
            given = False if border.producer is None else chosen[border.producer].gives_integers
            reads = [chosen[r].reads_integers for r in border.readers]
            total += border.quantize * (given is False and any(reads))
            total += border.dequantize * (
                given is True and (border.read_as_float or not all(reads))
            )
        return total

    def loss(self, precisions: Mapping[str, str]) -> float:
        """Predicted loss of an assignment."""
        return sum(c.loss for c in self._chosen(precisions).values())

    def bytes(self, precisions: Mapping[str, str]) -> float:
        """What the weights of an assignment take."""
        return sum(c.bytes for c in self._chosen(precisions).values())

    def is_possible(self, precisions: Mapping[str, str]) -> bool:
        """Whether an assignment has room, keeps ties, and no node lacks integers that it needs."""
        chosen = self._chosen(precisions)
        for item in self.items:
            choice = chosen[item.name]
            if choice.reads_integers and any(
                chosen[n].gives_integers is False for n in item.follows
            ):
                return False
            if choice.reads_integers and any(precisions[n] != choice.precision for n in item.moves):
                return False
            if (
                choice.gives_integers
                and item.serves
                and not any(chosen[n].reads_integers for n in item.serves)
            ):
                return False
        if self.room is not None and self.bytes(precisions) > self.room:
            return False
        return all(len({precisions[n] for n in tie}) == 1 for tie in self.ties)

    def _chosen(self, precisions: Mapping[str, str]) -> dict[str, Choice]:
        return {
            item.name: next(c for c in item.choices if c.precision == precisions[item.name])
            for item in self.items
        }


@dataclass(frozen=True)
class Assignment:
    """A precision for every node.

    Attributes:
        precisions: Precision by node name.
        cost: Predicted cost, borders included.
        loss: Predicted loss.
        exact: Whether it is proven best, to within `_GAP`; False where the search ran out of time.
    """

    precisions: Mapping[str, str] = field(default_factory=dict)
    cost: float = 0.0
    loss: float = 0.0
    exact: bool = True


def assign(
    problem: Problem,
    *,
    objective: Objective = "cost",
    budget: float | None = None,
    time_limit: float = TIME_LIMIT,
) -> Assignment | None:
    """The best assignment with room and within a budget of the other quantity; None without any.

    Solved as a mixed-integer linear program by HiGHS (Huangfu and Hall 2018): one binary variable
    for each node and precision, and for each value two variables between 0 and 1 that rise to 1
    where a border has to be paid. With no budget and borders that are not negative, the relaxation
    is that of a minimum cut and almost always integral, so problems of thousands of nodes take
    seconds. When time runs out, the best assignment found so far is given, or, if there is none,
    the one of `_tightened`; both say that they are not exact.

    Args:
        problem: Nodes, borders and ties.
        objective: Minimise ``cost`` within a budget of loss, or ``loss`` within one of cost.
        budget: Largest sum of the other quantity; without one it is free.
        time_limit: Seconds for the exact search.
    """
    program = _Program(problem)
    costs, losses = program.costs(), program.losses()
    goal, limited = (costs, losses) if objective == "cost" else (losses, costs)
    result = program.solve(goal, limited, budget, time_limit)
    if result.status == 2:
        return None
    if result.x is None:
        return _tightened(program, objective, budget, time_limit)
    return program.assignment(result.x, exact=result.status == 0)


def pareto_front(
    problem: Problem, *, points: int = 12, time_limit: float = TIME_LIMIT
) -> list[Assignment]:
    """Assignments of which none is better than another in both cost and loss, cheapest first.

    The budget of loss falls in geometric steps from that of the cheapest assignment, at most
    ``points`` times, until only assignments without loss are left.
    """
    best = assign(problem, time_limit=time_limit)
    if best is None:
        return []
    front = [best]
    spared = min((c.loss for i in problem.items for c in i.choices if c.loss > 0), default=0.0)
    steps = max(1, points - 1)
    ratio = (spared / best.loss) ** (1 / steps) if best.loss > spared > 0 else 0.5
    budget = best.loss
    for _ in range(steps):
        budget = min(budget * ratio, front[-1].loss * (1 - 1e-9))
        found = assign(problem, budget=budget, time_limit=time_limit)
        if found is None:
            break
        if found.loss < front[-1].loss:
            front.append(found)
        if found.loss == 0:
            break
    return front


@contextlib.contextmanager
def _standard_output_unused() -> Iterator[None]:
    """Keep what is printed away from standard output, where a report may go as JSON.

    HiGHS, as scipy 1.17 has it, prints a line of its own now and then, whatever its options say
    (``HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();``).
    """
    with _REDIRECTING:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
            before = os.dup(1)
        except OSError:
            # There is no standard output, as in a service.
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, TypeError):
                # What C has buffered is written only then; Windows has no library of all names.
                ctypes.CDLL(None).fflush(None)
            os.dup2(before, 1)
            os.close(before)
            os.close(nowhere)


@dataclass(frozen=True)
class _Solution:
    """What HiGHS says: its status (0 optimal, 1 out of time, 2 impossible) and the variables."""

    status: int
    x: npt.NDArray[np.float64] | None


class _Program:
    """The linear program of a problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._at: dict[tuple[str, str], int] = {}
        self._items = {item.name: item for item in problem.items}
        for item in problem.items:
            for choice in item.choices:
                self._at[item.name, choice.precision] = len(self._at)
        self._borders = len(self._at)
        self._rows: list[dict[int, float]] = []
        self._low: list[float] = []
        self._high: list[float] = []
        self._build()

    def costs(self) -> npt.NDArray[np.float64]:
        """Cost of each variable."""
        own = [c.cost for item in self._problem.items for c in item.choices]
        borders = [n for b in self._problem.borders for n in (b.quantize, b.dequantize)]
        return np.array([*own, *borders], dtype=np.float64)

    def losses(self) -> npt.NDArray[np.float64]:
        """Loss of each variable."""
        own = [c.loss for item in self._problem.items for c in item.choices]
        return np.array([*own, *[0.0] * (2 * len(self._problem.borders))], dtype=np.float64)

    def solve(
        self,
        goal: npt.NDArray[np.float64],
        limited: npt.NDArray[np.float64],
        budget: float | None,
        time_limit: float,
    ) -> _Solution:
        rows, low, high = list(self._rows), list(self._low), list(self._high)
        if budget is not None:
            # Losses span many orders of magnitude; solvers compare with absolute tolerances.
            scale = 1.0 / max(budget if budget > _NOTHING else limited.max(initial=0.0), _NOTHING)
            with np.errstate(over="ignore"):
                limits = np.minimum(limited * scale, 1e6)
            rows.append({i: float(n) for i, n in enumerate(limits) if n})
            low.append(-np.inf)
            high.append(budget * scale)
        if not len(goal):
            return _Solution(0, np.zeros(0))
        from scipy.optimize import Bounds, LinearConstraint, milp

        size = max(float(np.abs(goal).max()), 1e-300)
        integral = np.zeros(len(goal), dtype=np.int64)
        integral[: self._borders] = 1
        with _standard_output_unused():
            result = milp(
                goal / size,
                integrality=integral,
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(_matrix(rows, len(goal)), low, high) if rows else None,
                options={"time_limit": time_limit, "mip_rel_gap": _GAP},
            )
        return _Solution(int(result.status), result.x)

    def assignment(self, x: npt.NDArray[np.float64], *, exact: bool) -> Assignment:
        """The assignment that the variables say."""
        precisions = {
            item.name: max(
                item.choices, key=lambda c: x[self._at[item.name, c.precision]]
            ).precision
            for item in self._problem.items
        }
        problem = self._problem
        return Assignment(precisions, problem.cost(precisions), problem.loss(precisions), exact)

    def _build(self) -> None:
        for item in self._problem.items:
            self._row({self._at[item.name, c.precision]: 1.0 for c in item.choices}, 1.0, 1.0)
            reads, gives = self._reading(item.name), self._giving(item.name)
            for name in item.follows:
                able = self._at_all(name, lambda c: c.gives_integers is not False)
                self._row(_difference(reads, able), -np.inf, 0.0)
            for choice in item.choices:
                if choice.reads_integers and item.moves:
                    self._build_move(item, choice.precision)
            if item.serves:
                served: dict[int, float] = {}
                for name in item.serves:
                    served |= self._reading(name)
                self._row(_difference(gives, served), -np.inf, 0.0)
        for number, border in enumerate(self._problem.borders):
            self._build_border(border, self._borders + 2 * number)
        for tie in self._problem.ties:
            self._build_tie(tie)
        if (room := self._problem.room) is not None:
            # Coefficients far from 1 are hard on solvers.
            unit = max(room, 1.0)
            taken = {
                self._at[item.name, c.precision]: c.bytes / unit
                for item in self._problem.items
                for c in item.choices
            }
            self._row({at: share for at, share in taken.items() if share}, -np.inf, room / unit)

    def _build_border(self, border: Border, quantize: int) -> None:
        dequantize = quantize + 1
        given = {} if border.producer is None else self._giving(border.producer)
        able = given
        if border.producer is not None:
            able = self._at_all(border.producer, lambda c: c.gives_integers is not False)
        for reader in border.readers:
            reads = self._reading(reader)
            self._row({**_difference(reads, able), quantize: -1.0}, -np.inf, 0.0)
            if given:
                self._row({**_difference(given, reads), dequantize: -1.0}, -np.inf, 0.0)
        if border.read_as_float and given:
            self._row({**given, dequantize: -1.0}, -np.inf, 0.0)

    def _build_move(self, item: Item, precision: str) -> None:
        for name in item.moves:
            at = self._at.get((name, precision))
            row = {self._at[item.name, precision]: 1.0}
            self._row(row if at is None else {**row, at: -1.0}, -np.inf, 0.0)

    def _build_tie(self, tie: Sequence[str]) -> None:
        names = [{c.precision for c in self._items[n].choices} for n in tie]
        if not set.intersection(*names):
            raise InvariantError(f"the nodes {', '.join(tie)} have no precision in common")
        for precision in sorted(set.union(*names)):
            first, *others = (self._at.get((n, precision)) for n in tie)
            for other in others:
                row = {} if first is None else {first: 1.0}
                if other is not None:
                    row[other] = -1.0
                self._row(row, 0.0, 0.0)

    def _row(self, row: dict[int, float], low: float, high: float) -> None:
        if row:
            self._rows.append(row)
            self._low.append(low)
            self._high.append(high)

    def _reading(self, name: str) -> dict[int, float]:
        return self._at_all(name, lambda c: c.reads_integers)

    def _giving(self, name: str) -> dict[int, float]:
        return self._at_all(name, lambda c: c.gives_integers is True)

    def _at_all(self, name: str, wanted: Wanted) -> dict[int, float]:
        return {self._at[name, c.precision]: 1.0 for c in self._items[name].choices if wanted(c)}


def _tightened(
    program: _Program, objective: Objective, budget: float | None, time_limit: float
) -> Assignment | None:
    """A heuristic for problems too large for the exact search.

    The limited quantity enters the objective at a price instead of under a limit (a Lagrangian
    relaxation), which leaves a program close to a minimum cut. The price is doubled until the
    budget holds and then bisected. Gives an assignment within the budget, or None.
    """
    if budget is None:
        return None
    costs, losses = program.costs(), program.losses()
    goal, limited = (costs, losses) if objective == "cost" else (losses, costs)
    unit = max(float(goal.max()), 1e-300) / max(float(limited.max()), 1e-300)
    low, high = 0.0, 1.0
    best: Assignment | None = None
    for _ in range(_PRICES):
        price = high if best is None else (low + high) / 2
        result = program.solve(goal + price * unit * limited, limited, None, time_limit)
        if result.x is None:
            break
        found = program.assignment(result.x, exact=False)
        if (found.loss if objective == "cost" else found.cost) <= budget:
            best, high = found, price
        elif best is None:
            low, high = high, 2 * high
        else:
            low = price
    return best


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Coefficients of one sum of variables minus another."""
    row = dict(ours)
    for at, factor in theirs.items():
        row[at] = row.get(at, 0.0) - factor
    return {at: factor for at, factor in row.items() if factor}


def _matrix(rows: Sequence[Mapping[int, float]], width: int) -> csr_array:
    from scipy.sparse import csr_array

    data = [factor for row in rows for factor in row.values()]
    columns = [at for row in rows for at in row]
    starts = np.cumsum([0, *[len(row) for row in rows]])
    return csr_array((data, columns, starts), shape=(len(rows), width))
