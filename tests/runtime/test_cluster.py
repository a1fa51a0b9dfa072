"""Workers that die, hang or have no room: the results are those of one process, each once."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxq.errors import InputError
from onnxq.ir import save
from onnxq.job import open_job
from onnxq.options import Options
from onnxq.prepare import observed, prepare
from onnxq.runtime.executor import IN_PROCESS, Executor, open_executor
from onnxq.runtime.sharing import Sharing
from onnxq.runtime.store import Store
from onnxq.study import uniform_plan
from tests.networks import chain, inputs
from tests.runtime.cluster_work import Momentary, Squares

distributed = pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.slow,
    # What workers that are killed leave behind is seen by the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NUMBERS = [*range(12)]
SQUARES = [n * n for n in NUMBERS]


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    folder = tmp_path_factory.mktemp("spread")
    cluster = importlib.import_module("onnxq.runtime.cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cluster._SETTINGS, "distributed.scheduler.allowed-failures", 2)
        yield from _opened(folder)


def _opened(folder: Path) -> Iterator[Executor]:
    with open_executor(2, None, folder, hangs_after=6) as opened:
        yield opened


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    folder = tmp_path / "noted"
    folder.mkdir()
    return folder


def test_results_come_in_order_and_nothing_is_left(executor: Executor, noted: Path) -> None:
    assert list(IN_PROCESS.map(Squares(noted), NUMBERS)) == SQUARES
    assert list(executor.map(Squares(noted), NUMBERS)) == SQUARES
    assert executor.folder is not None
    assert not list((executor.folder / "results").iterdir())


def test_what_no_other_run_can_use_goes_at_once(executor: Executor, noted: Path) -> None:
    assert executor.folder is not None
    with executor.open(Momentary(noted)) as do:
        for numbers in (NUMBERS[:5], NUMBERS[5:]):
            assert list(do(numbers)) == [n * n for n in numbers]
            assert not list((executor.folder / "results").iterdir())
        with closing(executor.map(Momentary(noted), NUMBERS[:1])) as found:
            assert next(found) == 0
        assert not list((executor.folder / "results").iterdir())


def test_of_tuned_layers_nothing_is_left(executor: Executor, tmp_path: Path) -> None:
    save(chain(), tmp_path / "m.onnx")
    assert executor.folder is not None
    options = Options("int8-weight", methods=("mse",))
    with open_job(tmp_path / "m.onnx", inputs(chain(), 8), options) as job:
        prepared = observed(prepare(replace(job, executor=executor)))
        assert uniform_plan(prepared, "int8-weight").tuned
    assert not list((executor.folder / "results").iterdir())


def test_what_is_started_listens_on_loopback_only(executor: Executor, noted: Path) -> None:
    psutil = pytest.importorskip("psutil")
    list(executor.map(Squares(noted), NUMBERS))
    own = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in [own, *own.children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4 and {*listening} == {"127.0.0.1"}


def test_nobody_without_the_keys_of_the_run_can_connect(executor: Executor) -> None:
    pytest.importorskip("cryptography")
    address = executor._connection.client().scheduler_info()["address"]  # type: ignore[attr-defined]
    assert address.startswith("tls://127.0.0.1:")
    for way in (address, address.replace("tls", "tcp")):
        with pytest.raises((OSError, ValueError, TypeError)):
            distributed.Client(way, timeout=2, set_as_default=False)


@pytest.mark.parametrize("trouble", ["killed", "stopped", "disk"])
@pytest.mark.parametrize("takes", [inf, 0.01])
def test_what_a_worker_cannot_do_another_one_does(
    trouble: str,
    takes: float,
    executor: Executor,
    noted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Short items go together.
    monkeypatch.setattr(executor, "_takes", {Squares: takes})
    assert list(executor.map(Squares(noted, trouble), NUMBERS)) == SQUARES
    tried = list(noted.glob("3-*"))
    # One that was stopped may come to an end when it is told to.
    assert len(tried) == 2 or trouble == "stopped"
    assert len({file.name.split("-")[2] for file in tried}) == len(tried) or trouble == "disk"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("always killed", "workers ended one after another"),
        ("always disk", r"No space left on device.*3 times"),
        ("refused", "three cannot be squared"),
    ],
)
def test_what_nobody_can_do_is_said_in_a_sentence(
    trouble: str, said: str, executor: Executor, noted: Path
) -> None:
    with pytest.raises(InputError, match=said):
        list(executor.map(Squares(noted, trouble), NUMBERS))


def test_what_recurses_too_deep_comes_back(executor: Executor, noted: Path) -> None:
    with pytest.raises(RecursionError, match="maximum recursion depth exceeded"):
        list(executor.map(Squares(noted, "always endless"), NUMBERS))


@pytest.mark.parametrize("trouble", ["always killed", "always disk"])
@pytest.mark.parametrize("takes", [inf, 0.01])
def test_work_that_goes_on_without_an_item_has_all_others(
    trouble: str,
    takes: float,
    executor: Executor,
    noted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "_takes", {Squares: takes})
    found = list(executor.map(Squares(noted, trouble, instead=-1), NUMBERS))
    assert found == [-1 if number == 3 else number * number for number in NUMBERS]


def test_what_waits_at_a_worker_that_ends_is_not_given_up(
    tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = importlib.import_module("onnxq.runtime.cluster")
    monkeypatch.setitem(cluster._SETTINGS, "distributed.scheduler.allowed-failures", 2)
    with open_executor(1, None, tmp_path / "spread") as alone:
        found = list(alone.map(Squares(noted, "always killed", instead=-1), NUMBERS))
    assert found == [-1 if number == 3 else number * number for number in NUMBERS]


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1] * 12), (2, [2, 2, 2, 2, 1, 1, 1, 1]), (9, [3, 3, 2, 1, 1, 1, 1])]
)
def test_fewer_and_fewer_items_go_together(most: int, sizes: list[int]) -> None:
    cluster = importlib.import_module("onnxq.runtime.cluster")
    keys = [*map(str, NUMBERS)]
    bundles = cluster._bundled(keys, 2, most)
    assert [key for bundle in bundles for key in bundle] == keys
    assert [*map(len, bundles)] == sizes


def test_how_long_items_take_is_what_workers_took(
    executor: Executor, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr("onnxq.runtime.cluster.time", clock)
    takes: dict[type, float] = {}
    monkeypatch.setattr(executor, "_takes", takes)
    with executor.open(Squares(noted)) as do:
        for number, square in enumerate(do(NUMBERS[:6])):
            assert square == SQUARES[number]
            # Whoever takes the last result has much to do with it.
            now[0] += 1000.0 * (number == 5)
        assert 0 < takes[Squares] < 1
        before = dict(takes)
        assert list(do(NUMBERS[:6])) == SQUARES[:6]
        assert takes == before, "nothing is known of items that were there already"
        assert list(do(NUMBERS)) == SQUARES
        assert 0 < takes[Squares] < 1


def test_workers_killed_at_random_change_nothing(executor: Executor, noted: Path) -> None:
    over = threading.Event()

    def kill() -> None:
        for _ in range(2):
            if over.wait(1.5):
                return
            pids = {int(f.name.split("-")[2]) for f in noted.iterdir()}
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = list(executor.map(Squares(noted, seconds=0.4), NUMBERS))
    finally:
        over.set()
        killer.join()
    assert found == SQUARES


def test_a_worker_that_dies_while_it_starts_is_started_again(
    tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr("onnxq.runtime.cluster._MENDS_EVERY", 3.0)
    own = {process.pid for process in psutil.Process().children(recursive=True)}

    def started() -> list[int]:
        now = psutil.Process().children(recursive=True)
        return [p.pid for p in now if p.pid not in own and "spawn_main" in " ".join(p.cmdline())]

    with open_executor(1, None, tmp_path / "spread", hangs_after=60) as executor:
        for _ in range(2):
            (pid,) = started()
            os.kill(pid, signal.SIGKILL)
            own.add(pid)
            until = time.monotonic() + 30
            while not started() and time.monotonic() < until:
                time.sleep(0.01)
        (pid,) = started()
        os.kill(pid, signal.SIGKILL)
        assert list(executor.map(Squares(noted), NUMBERS)) == SQUARES


def test_a_worker_that_was_given_up_is_started_again(
    tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.runtime.cluster._MENDS_EVERY", 0.5)
    with open_executor(2, None, tmp_path / "spread", hangs_after=60) as executor:
        cluster = executor._connection._address  # type: ignore[attr-defined]
        # Dask does so where a worker that was lost is not back in time.
        lost = cluster.workers.pop(1)
        cluster.sync(lost.close)
        executor._connection.client().wait_for_workers(2, timeout=60)  # type: ignore[attr-defined]
        assert list(executor.map(Squares(noted), NUMBERS)) == SQUARES


def test_a_run_that_was_broken_off_goes_on(executor: Executor, noted: Path) -> None:
    taken = []
    for square in executor.map(Squares(noted), NUMBERS):
        taken.append(square)
        if len(taken) == 5:
            break
    before = {file.name for file in noted.iterdir()}
    assert list(executor.map(Squares(noted), NUMBERS)) == SQUARES
    done = {int(name.split("-")[0]) for name in before}
    again = {int(f.name.split("-")[0]) for f in noted.iterdir() if f.name not in before}
    assert not {0, 1, 2, 3, 4} & again and done | again == {*NUMBERS}


def test_what_waits_behind_the_work_of_others_does_not_hang(
    executor: Executor, noted: Path
) -> None:
    client = executor._connection.client()  # type: ignore[attr-defined]
    client.wait_for_workers(2, timeout=60)
    before = client.run(os.getpid)
    others = [client.submit(time.sleep, 9, workers=[w], pure=False) for w in before]
    assert list(executor.map(Squares(noted), NUMBERS)) == SQUARES
    assert client.run(os.getpid) == before, "a worker was started again"
    assert [other.result(timeout=20) for other in others] == [None, None]


def test_work_is_not_kept_open_for_ever(
    tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = importlib.import_module("onnxq.runtime.cluster")
    monkeypatch.setattr(cluster, "_KEEPS_OPEN", 0.2)
    monkeypatch.setattr(cluster, "get_worker", lambda: SimpleNamespace(address="tcp://here:1"))
    monkeypatch.setattr("onnxq.runtime.pool._most", 0)
    file = tmp_path / "work" / "squares"
    file.parent.mkdir()
    file.write_bytes(Sharing(tmp_path).dump(Squares(noted)))
    cluster.run_item(str(file), 4, "four")
    assert Store(tmp_path / "results").get("four") == 16
    assert cluster._Opened.name == str(file)
    until = time.monotonic() + 20
    while cluster._Opened.name and time.monotonic() < until:
        time.sleep(0.05)
    assert not cluster._Opened.name


def test_what_nobody_has_wanted_for_long_goes(tmp_path: Path) -> None:
    cluster = importlib.import_module("onnxq.runtime.cluster")
    for name in ("work/old", "work/new", "models/old/model.onnx", "models/new/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("work/old", "models/old"):
        os.utime(tmp_path / name, (1, 1))
    cluster.Cluster(cluster.Connection(""), tmp_path, 60, None)
    assert {p.name for p in tmp_path.glob("*/*")} == {"new"}


def test_a_second_result_leaves_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    store.put("key", 1)
    store.put("key", 2)
    assert store.get("key") == 1 and "other" not in store
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["key"]


def _started(command: list[str], **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + command[0], *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_scheduler_that_is_restarted_is_found_again(tmp_path: Path, noted: Path) -> None:
    port = 18700 + os.getpid() % 1000
    address = f"tcp://127.0.0.1:{port}"

    def start() -> list[subprocess.Popen[bytes]]:
        scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
        return [
            _started([*scheduler, "--no-dashboard"]),
            _started(["dask_worker", address, "--nthreads", "1", "--no-dashboard"]),
        ]

    running = start()
    try:
        with open_executor(None, address, tmp_path / "spread", hangs_after=60) as executor:
            found = []
            for square in executor.map(Squares(noted, seconds=0.2), NUMBERS):
                found.append(square)
                if len(found) == 3:
                    for process in running:
                        process.kill()
                        process.wait()
                    time.sleep(0.5)
                    running = start()
        assert found == SQUARES
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_where_no_scheduler_is_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.runtime.cluster._ANSWERS_WITHIN", 0.5)
    with (
        pytest.raises(InputError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"),
        open_executor(None, "tcp://127.0.0.1:9", tmp_path),
    ):
        pass


def test_workers_load_modules_while_nothing_is_there_to_do(tmp_path: Path) -> None:
    with open_executor(1, None, tmp_path / "spread", modules=("onnxq.precision",)) as alone:
        client = alone._connection.client()  # type: ignore[attr-defined]
        until = time.monotonic() + 30
        while not (found := [*client.run(_has_loaded, "onnxq.precision.q4_0").values()])[0]:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert found == [True]


def test_a_worker_that_hangs_holds_up_nobody_who_lets_modules_be_loaded(
    executor: Executor,
) -> None:
    connection = executor._connection  # type: ignore[attr-defined]
    client = connection.client()
    client.wait_for_workers(2, timeout=60)
    (_, hung), (other, _) = client.run(os.getpid).items()
    loading = threading.Thread(target=connection.load, args=(["colorsys"],), daemon=True)
    os.kill(hung, signal.SIGSTOP)
    try:
        loading.start()
        loading.join(20)
        assert not loading.is_alive()
        until = time.monotonic() + 30
        while not client.run(_has_loaded, "colorsys", workers=[other])[other]:
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        os.kill(hung, signal.SIGCONT)


def _has_loaded(name: str) -> bool:
    return name in sys.modules
