"""The backend onnxruntime-web: models in a browser, on its provider wasm."""

from __future__ import annotations

import base64
import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import load, to_proto
from onnxq.ir.loading import ModelLike
from onnxq.runtime import timing
from onnxq.runtime.backend import Backend, NodeTime
from onnxq.runtime.browser import missing_browser, open_browser
from onnxq.runtime.failures import one_sentence
from onnxq.runtime.session import Session, model_label
from onnxq.runtime.specs import Array, Runnable, TensorSpec
from onnxq.runtime.web_package import FILES, missing_package, web_package

if TYPE_CHECKING:
    from playwright.sync_api import Page

_PROVIDER = "wasm"
_SCRIPT = Path(__file__).with_suffix(".mjs")
_PAGE = b'<!doctype html><title>onnxq</title><script type="module" src="/web.mjs"></script>'
_TYPES = {"": "text/html", "mjs": "text/javascript", "wasm": "application/wasm"}


class OnnxruntimeWeb(Backend):
    """onnxruntime-web in Chromium without a window, driven by Playwright.

    Models are in one page and run there in turn. They and the package are served by this process
    on the loopback interface, with the headers that give a page a fine clock, and threads.
    """

    name = "onnxruntime-web"
    is_for_targets = False

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._opened: _Tab | None = None

    @property
    def version(self) -> str:
        """See `Backend.version`."""
        return str(self._tab.call("version"))

    def missing(self, provider: str) -> str:
        """See `Backend.missing`."""
        if provider.lower() != _PROVIDER:
            return f"onnxruntime-web is run on the provider wasm here, not on '{provider}'"
        return missing_browser() or missing_package()

    def session(
        self, model: ModelLike, *, provider: str = _PROVIDER, threads: int = 1, pooled: bool = False
    ) -> Runnable:
        """See `Backend.session`."""
        if lacking := self.missing(provider):
            raise InputError(lacking)
        return _WebSession(self._tab, model, threads)

    def profile(
        self,
        models: Sequence[ModelLike],
        feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        *,
        provider: str = _PROVIDER,
        threads: int = 1,
        rounds: int = 24,
    ) -> list[list[NodeTime]]:
        """See `Backend.profile`; there is no such profile of a browser.

        Raises:
            InputError: always.
        """
        raise InputError("operators are not timed in a browser; measure costs on the CPU provider")

    @staticmethod
    def time(
        sessions: Sequence[Runnable],
        feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        *,
        warmup: int = 3,
        rounds: int | None = None,
        seconds: float = 2.0,
    ) -> list[timing.Timing]:
        """See `timing.interleaved`, which this is inside the page, by the page's clock."""
        held = [cast(_WebSession, session) for session in sessions]
        per_session = [feeds] * len(held) if isinstance(feeds, Mapping) else list(feeds)
        measured = held[0].tab.call(
            "time",
            {
                "names": [session.name for session in held],
                "feeds": [_encoded(feed) for feed in per_session],
                "warmup": max(1, warmup),
                "longestWarmup": timing.LONGEST_WARMUP,
                "slot": timing.SHORTEST_SLOT,
                "rounds": rounds,
                "fewest": timing.FEWEST_ROUNDS if rounds is None else max(1, rounds),
                "seconds": seconds,
            },
        )
        return timing.summarized(np.asarray(measured["times"]), measured["repeats"])

    def close(self) -> None:
        """See `Backend.close`: ends the browser and the server."""
        self._opened = None
        self._stack.close()

    @property
    def _tab(self) -> _Tab:
        if self._opened is None:
            served = self._stack.enter_context(_serving(web_package()))
            self._opened = _Tab(self._stack.enter_context(open_browser()).new_page(), served)
        return self._opened


class _Tab:
    """The page with the models, and the server that it has them from."""

    def __init__(self, page: Page, served: _Server) -> None:
        self._page, self.served = page, served
        self.names = (str(number) for number in itertools.count())
        page.goto(served.address)
        if not page.evaluate("() => 'onnxq' in globalThis"):
            raise InputError("the browser cannot load onnxruntime-web; a newer one may")

    def call(self, function: str, argument: object = None) -> Any:
        """Call a function of the page, or read what it holds.

        Raises:
            InputError: it failed, or the page did.
        """
        from playwright.sync_api import Error

        script = f"a => {{ const f = onnxq.{function}; return f instanceof Function ? f(a) : f; }}"
        try:
            return self._page.evaluate(script, argument)
        except Error as error:
            said = one_sentence(error).removeprefix("Page.evaluate: ").split(" at ", 1)[0]
            raise InputError(f"onnxruntime-web failed: {said}") from error


class _WebSession:
    """A model in the page."""

    def __init__(self, tab: _Tab, model: ModelLike, threads: int) -> None:
        # It tells inputs and outputs with more than the page knows of them.
        native = Session(model)
        self.inputs: tuple[TensorSpec, ...] = native.inputs
        self.outputs: tuple[TensorSpec, ...] = native.outputs
        self.runs_in_caller = False
        self.tab, self.name = tab, next(tab.names)
        self._label = model_label(model)
        tab.served.models[self.name] = _whole(model)
        try:
            tab.call("load", {"name": self.name, "threads": threads})
        except InputError as error:
            raise InputError(f"{self._label} cannot be loaded: {error}") from error
        finally:
            del tab.served.models[self.name]

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        wanted = list(outputs or (spec.name for spec in self.outputs))
        argument = {"name": self.name, "feeds": _encoded(feeds), "outputs": wanted}
        found = self.tab.call("run", argument)
        return {name: _decoded(found[name]) for name in wanted}


def _whole(model: ModelLike) -> bytes:
    """A model's bytes with all its weights, as a page has no files beside it."""
    graph = load(model)
    if isinstance(model, bytes):
        return model
    return bytes(to_proto(graph).SerializeToString())


def _encoded(feeds: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "type": array.dtype.name,
            "dims": array.shape,
            "base64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
        }
        for name, array in feeds.items()
    }


def _decoded(tensor: Mapping[str, Any]) -> Array:
    data = base64.b64decode(tensor["base64"])
    return np.frombuffer(data, np.dtype(tensor["type"])).reshape(tensor["dims"])


class _Server(ThreadingHTTPServer):
    """Serves a page, the package and the models on the loopback interface."""

    daemon_threads = True

    def __init__(self, package: Path) -> None:
        self.files = {"/web.mjs": _SCRIPT} | {f"/ort/{name}": package / name for name in FILES}
        self.models: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path, models = self.path, self.server.models
        if path == "/":
            body: bytes | None = _PAGE
        elif path in self.server.files:
            body = self.server.files[path].read_bytes()
        else:
            body = models.get(path.removeprefix("/models/"))
        if body is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        kind = _TYPES.get(path.rpartition("/")[2].rpartition(".")[2], "application/octet-stream")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: people see what the command prints."""


@contextlib.contextmanager
def _serving(package: Path) -> Iterator[_Server]:
    with _Server(package) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
