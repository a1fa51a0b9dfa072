"""A service with an adaptive session: predictions, feedback on them, events, and metrics.

ONNXQ_BUNDLE=bundle/ uvicorn app:app --app-dir examples/serve
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Histogram, generate_latest
from pydantic import BaseModel

from onnxq.adaptive.metrics import SessionMetrics
from onnxq.adaptive.session import AdaptiveSession

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
SECONDS = Histogram(
    "predict_seconds",
    "Time to compute a prediction.",
    buckets=[2.0**n / 1000 for n in range(-3, 8)],
)


class Question(BaseModel):
    """Nested lists by input, samples first."""

    inputs: dict[str, Any]


class Feedback(BaseModel):
    """Whether the answer to a request was right, by what `/predict` called it."""

    request: str
    correct: bool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One session for all requests; what it learned is kept beside the bundle when it ends."""
    with AdaptiveSession(os.environ["ONNXQ_BUNDLE"]) as session:
        app.state.session = session
        app.state.dtypes = {i.name: DTYPES[i.type] for i in session.get_inputs()}
        metrics = SessionMetrics(session)
        REGISTRY.register(metrics)
        yield
        REGISTRY.unregister(metrics)


app = FastAPI(lifespan=lifespan)


# Functions without `async` run in threads: a prediction holds up no other request.
@app.post("/predict")
def predict(question: Question) -> dict[str, Any]:
    """Answer, with a name for `/feedback`."""
    session: AdaptiveSession = app.state.session
    try:
        feeds = {n: np.array(v, app.state.dtypes[n]) for n, v in question.inputs.items()}
        with SECONDS.time():
            answers = session.run(None, feeds)
    except Exception as error:
        raise HTTPException(422, f"the inputs do not fit: {error}") from error
    names = (output.name for output in session.get_outputs())
    outputs = {name: answer.tolist() for name, answer in zip(names, answers, strict=True)}
    # Every worker process counts from 1.
    return {"request": f"{session.worker}-{session.request}", "outputs": outputs}


@app.post("/feedback", status_code=204)
def feedback(said: Feedback) -> None:
    """Take to heart whether an answer of this worker was right."""
    session: AdaptiveSession = app.state.session
    worker, _, number = said.request.rpartition("-")
    if worker != session.worker or not number.isdecimal():
        raise HTTPException(
            421,
            f"request '{said.request}' was not answered by this worker, '{session.worker}'; send "
            "feedback to the worker whose name the request begins with",
        )
    session.feedback(int(number), said.correct)


@app.get("/events")
def events() -> list[dict[str, Any]]:
    """What happened: drift, changes and their reasons, faults."""
    found: list[dict[str, Any]] = app.state.session.events()
    return found


@app.get("/tensors")
def tensors() -> dict[str, dict[str, float]]:
    """Where values of tensors lay lately, in the requests of all workers."""
    found: dict[str, dict[str, float]] = app.state.session.tensors()
    return found


@app.get("/metrics")
def metrics() -> Response:
    """For Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
