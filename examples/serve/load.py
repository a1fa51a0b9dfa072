"""Ask a service for predictions from several threads, and print how long they took.

python examples/serve/load.py DATA.npz [--url URL | --bundle BUNDLE] [--requests N] [--threads N]

With --bundle the service is started for the test. Where DATA has labels, and the first output has
a score for each class, every tenth answer gets feedback.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import numpy as np


def main() -> None:
    """Ask, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, metavar="DATA.npz", help="arrays named after the inputs")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a running service")
    parser.add_argument("--bundle", help="start a service on it")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    parsed = parser.parse_args()
    with np.load(parsed.data) as file:
        arrays = {name: file[name] for name in file if name != "split"}
    labels = arrays.pop("labels", None)
    with _service(parsed.bundle) if parsed.bundle else _running(parsed.url) as url:
        started = time.perf_counter()
        with ThreadPoolExecutor(parsed.threads) as pool:
            found = list(pool.map(lambda n: ask(url, arrays, labels, n), range(parsed.requests)))
        seconds = time.perf_counter() - started
        report(found, seconds)
        kept = ("onnxq_", "predict_seconds_count")
        print(
            *(line for line in _get(f"{url}/metrics").splitlines() if line.startswith(kept)),
            sep="\n",
        )


def ask(url: str, arrays: dict[str, np.ndarray], labels: np.ndarray | None, number: int) -> float:
    """One request; its seconds, infinite where it failed."""
    count = len(next(iter(arrays.values())))
    at = number % count
    inputs = {name: array[at : at + 1].tolist() for name, array in arrays.items()}
    body = json.dumps({"inputs": inputs}).encode()
    started = time.perf_counter()
    try:
        answer = json.loads(_post(f"{url}/predict", body))
    except OSError:
        return float("inf")
    seconds = time.perf_counter() - started
    scores = np.array(next(iter(answer["outputs"].values())))
    if labels is not None and labels.ndim == 1 and scores.ndim == 2 and number % 10 == 0:
        correct = bool(scores[0].argmax() == labels[at])
        said = json.dumps({"request": answer["request"], "correct": correct})
        try:
            _post(f"{url}/feedback", said.encode())
        except urllib.error.HTTPError as error:
            # Of several workers behind one address another one may have got it.
            if error.code != HTTPStatus.MISDIRECTED_REQUEST:
                raise
    return seconds


def report(found: list[float], seconds: float) -> None:
    """Print how long requests took."""
    done = np.array([own for own in found if own != float("inf")]) * 1000
    failures = len(found) - len(done)
    print(f"{len(done)} answers, {failures} failures, {len(done) / seconds:.0f} a second")
    if len(done):
        median, worst = np.percentile(done, [50, 99])
        print(f"median {median:.2f} ms, 99 of 100 within {worst:.2f} ms")


@contextmanager
def _running(url: str) -> Iterator[str]:
    yield url.rstrip("/")


@contextmanager
def _service(bundle: str) -> Iterator[str]:
    """A service that runs until the test is over."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    command += ["--app-dir", str(Path(__file__).parent), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, env={**os.environ, "ONNXQ_BUNDLE": bundle})
    try:
        while True:
            try:
                _get(f"{url}/metrics")
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("the service did not start") from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


if __name__ == "__main__":
    main()
