from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.adaptive.deployment import Deployment, TensorQParams
from onnxq.adaptive.events import Journal
from onnxq.adaptive.state import Generation, State

FIRST = Deployment(0)
OTHER = Deployment(1, {"x": TensorQParams(0.1 + 0.2, 3)})


def opened(path: Path | None, worker: str = "me", **options: Any) -> tuple[State, Journal]:
    journal = Journal(worker, wall=options.pop("wall", lambda: 7.0))
    options = {"bundle": "a", "variants": 2, "first": FIRST, **options}
    return State(path, journal=journal, **options), journal


def change(state: State, deployment: Deployment, reason: str = "") -> Generation:
    expected = state.newest()
    new = Generation(expected.number + 1, deployment, reason)
    assert state.change(expected, new)
    return new


def reasons(state: State) -> list[str]:
    return [event.reason for event in state.events()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


def test_everything_survives_the_process(path: Path) -> None:
    state, journal = opened(path)
    journal.tell("drift", "brighter", score=0.1, tensors=["x"])
    made = change(state, OTHER, "better by 3 dB")
    state.save({"requests": 5, "range": float("inf")})
    assert made == Generation(1, OTHER, "better by 3 dB")

    later, _ = opened(path, "another")
    assert later.newest() == made
    assert later.before(1) == [Generation(0, FIRST)]
    assert [event.details for event in later.events()] == [{"score": 0.1, "tensors": ["x"]}]
    assert later.statistics() == {"me": {"requests": 5, "range": "inf"}}


def test_earlier_generations_come_newest_first(path: Path) -> None:
    state, _ = opened(path)
    for deployment in (OTHER, Deployment(1), OTHER):
        change(state, deployment)
    assert [generation.number for generation in state.before(3)] == [2, 1, 0]


def test_of_two_workers_only_one_changes_what_answers(path: Path) -> None:
    one, two = opened(path, "one")[0], opened(path, "two")[0]
    before = two.newest()
    made = change(one, OTHER, "first")
    # Even one that is equal is another worker's.
    for reason in ("second", "first"):
        assert not two.change(before, Generation(1, OTHER, reason))
    assert two.newest() == made
    assert change(two, Deployment(1), "third").number == 2
    assert one.save().number == 2


def test_many_workers_that_change_at_once_agree(path: Path) -> None:
    states = [opened(path, f"{number}")[0] for number in range(4)]
    won: list[Generation] = []

    def compete(state: State, number: int) -> None:
        for _ in range(5):
            expected = state.newest()
            new = Generation(expected.number + 1, Deployment(0), f"{number}")
            if state.change(expected, new):
                won.append(new)

    threads = [threading.Thread(target=compete, args=(s, n)) for n, s in enumerate(states)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = states[0].newest()
    assert all(state.newest() == newest for state in states)
    assert newest.number >= 5
    earlier = states[0].before(newest.number)[::-1][1:]
    assert [*earlier, newest] == sorted(won, key=lambda generation: generation.number)


def test_in_memory_it_is_the_same_without_a_file() -> None:
    state, journal = opened(None)
    journal.tell("drift", "brighter")
    made = change(state, OTHER, "better")
    state.save({"requests": 5})
    journal.tell("drift", "darker")
    assert state.newest() == made == Generation(1, OTHER, "better")
    assert reasons(state) == ["brighter", "darker"]
    assert state.statistics() == {"me": {"requests": 5}}
    assert state.inherit(lambda worker, saved: False) is None


def test_statistics_that_were_taken_over_outlive_an_heir_that_is_killed_at_once(
    path: Path,
) -> None:
    opened(path, "dead")[0].save({"of": "dead"})
    for heir in ("first", "second"):
        state, _ = opened(path, heir)
        assert state.inherit(lambda worker, saved, heir=heir: worker == heir) == {"of": "dead"}
    state.save({"of": "second"})
    assert opened(path, "third")[0].inherit(lambda worker, saved: False) == {"of": "second"}


def test_statistics_of_who_is_no_more_are_taken_over_once(path: Path) -> None:
    for time, worker in enumerate(["dead long ago", "dead", "alive"]):
        opened(path, worker, wall=lambda time=time: float(time))[0].save({"of": worker})
    for heir, expected in (
        ("me", {"of": "dead"}),
        ("you", {"of": "dead long ago"}),
        ("they", None),
    ):
        alive = {"alive", "me", "you"}
        state, _ = opened(path, heir)
        assert state.inherit(lambda worker, saved, alive=alive: worker in alive) == expected


def spoil_header(path: Path) -> None:
    content = path.read_bytes()
    # The size of pages.
    path.write_bytes(content[:16] + b"\xff\xff" + content[18:])


def replace_by_arrays(path: Path) -> None:
    path.unlink()
    np.savez(path.with_suffix(".npz"), x=np.zeros(1000))
    path.with_suffix(".npz").rename(path)


def replace_by_application(*statements: str) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        path.unlink()
        with closing(sqlite3.connect(path)) as file, file:
            for statement in statements:
                file.execute(statement)

    return alter


def spoil_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def run_sql(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(path)) as file, file:
            file.execute(statement)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_header, "not a database"),
        (spoil_page, "malformed"),
        (run_sql("DROP TABLE generations"), "no such table"),
        (run_sql("UPDATE generations SET deployment = '{\"variant\": 0'"), "no JSON"),
        (run_sql("UPDATE generations SET deployment = '{\"variants\": 0}'"), "unknown entry"),
        (run_sql("UPDATE generations SET deployment = '{\"variant\": 9}'"), "variant 9"),
    ],
)
def test_a_damaged_file_is_set_aside_and_told_once(
    path: Path, spoil: Callable[[Path], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(opened(path)[0], OTHER)
    spoil(path)
    state, _ = opened(path)
    assert state.newest() == Generation(0, FIRST)
    assert len(caplog.records) == 1
    assert why in caplog.text and "a new one is begun" in caplog.text
    assert len(list(path.parent.glob("*.damaged-*[0-9]"))) == 1
    state.save()
    assert opened(path)[0].events()[0].kind == "fault"


def test_statistics_that_are_damaged_set_the_file_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(path, "another")[0].save({"requests": 5})
    run_sql("UPDATE statistics SET body = '{'")(path)
    assert opened(path)[0].statistics() == {}
    assert "no JSON" in caplog.text


@pytest.mark.parametrize(
    ("alter", "why"),
    [
        (run_sql("UPDATE bundle SET identity = 'b'"), "belongs to another bundle"),
        (run_sql("PRAGMA user_version = 8"), "version 8"),
        (replace_by_arrays, "not a database"),
        (replace_by_application("CREATE TABLE events (at TEXT)"), "something else"),
        (
            replace_by_application("CREATE TABLE users (name TEXT)", "PRAGMA user_version = 1"),
            "something else",
        ),
    ],
)
def test_a_file_of_somebody_else_is_left_alone(
    path: Path, alter: Callable[[Path], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(opened(path)[0], OTHER)
    alter(path)
    before = path.read_bytes()
    state, _ = opened(path)
    assert change(state, OTHER) == state.save()
    assert path.read_bytes() == before and not list(path.parent.glob("*.damaged-*"))
    assert len(caplog.records) == 1 and why in caplog.text


def test_what_answers_is_kept_where_the_file_is_damaged_later(path: Path) -> None:
    state, _ = opened(path)
    made = change(state, OTHER, "better")
    spoil_header(path)
    assert state.save() == made == state.newest()
    assert opened(path)[0].newest() == made


def test_a_file_that_was_removed_is_written_again(path: Path) -> None:
    state, _ = opened(path)
    made = change(state, OTHER, "better")
    path.unlink()
    state.save()
    assert opened(path)[0].newest() == made


def test_without_the_file_all_goes_on_and_is_written_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state, journal = opened(path)
    state.save()
    connect = sqlite3.connect

    def full(*args: Any, **kwargs: Any) -> Any:
        file = connect(*args, **kwargs)
        # As where the disk is full: nothing can be added.
        file.execute("PRAGMA max_page_count=1")
        return file

    monkeypatch.setattr(sqlite3, "connect", full)
    for number in range(40):
        journal.tell("drift", f"{number} " + "x" * 1000)
    caplog.clear()
    for _ in range(3):
        state.save({"requests": 1})
    made = change(state, OTHER, "better " * 3000)
    assert made.number == 1 and state.newest() == made
    assert len(caplog.records) == 1 and "full" in caplog.text
    assert len(state.events()) == 41

    monkeypatch.undo()
    state.save()
    assert journal.waiting() == [] or journal.waiting()[-1].kind == "recovered"
    state.save()
    later = opened(path)[0]
    assert later.newest() == made
    assert [event.kind for event in later.events()] == ["drift"] * 40 + ["fault", "recovered"]


def test_a_folder_that_may_not_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, _ = opened(tmp_path / "missing" / "state.sqlite")
    state.save()
    assert change(state, OTHER).number == 1
    assert len(caplog.records) == 1 and "stays in memory" in caplog.text


def test_a_worker_that_made_one_in_memory_follows_what_the_file_says(path: Path) -> None:
    state, _ = opened(path)
    file, state.path = state.path, None
    change(state, OTHER, "in memory")
    state.path = file
    made = change(opened(path, "another")[0], Deployment(1), "in the file")
    assert state.save() == made


def test_a_kill_while_writing_loses_no_more_than_that(path: Path) -> None:
    program = f"""
import os, signal, sqlite3
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.events import Journal
from onnxq.adaptive.state import Generation, State
from pathlib import Path
journal = Journal("killed")
state = State(Path({str(path)!r}), bundle="a", variants=2, first=Deployment(0), journal=journal)
state.change(state.newest(), Generation(1, Deployment(1), "kept"))
def write(file):
    state._insert(file, Generation(2, Deployment(0), "lost"))
    os.kill(os.getpid(), signal.SIGKILL)
state._use(write)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == -9
    assert opened(path)[0].newest() == Generation(1, Deployment(1), "kept")
