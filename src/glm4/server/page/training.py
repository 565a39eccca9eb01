"""GET /ui/training/runs: runs of `glm4 finetune`, while they run and after. For who runs the server only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.server.errors import ApiError
from glm4.server.page.session import is_operator
from glm4.server.page.state import NO_STORE
from glm4.server.state import server_state
from glm4.training.run_folder import find_runs, read_metrics, read_samples, read_status

MAX_POINTS = 1000
"""Of a line; more are not seen on a screen."""
NUM_SAMPLES = 20
_MAX_TEXT = 4000
_STATUS = ("state", "step", "total_steps", "epoch", "updated", "error", "model", "method")
_TEXTS = ("prompt", "answer", "reference")
_LINES = ("loss", "eval_loss", "tokens_per_second", "learning_rate")


async def runs(request: Request) -> Response:
    """Name and state of each run, the newest first."""
    folder = _folder(request)
    found = await run_in_threadpool(lambda: [{"name": run.name, **_status(run)} for run in find_runs(folder)])
    return JSONResponse({"runs": found}, headers=NO_STORE)


async def run(request: Request) -> Response:
    """One run: its state, lines to plot, the latest answers of evaluations."""
    folder, name = _folder(request), request.path_params["name"]
    found = await run_in_threadpool(_described, folder, name)
    if found is None:
        raise ApiError(404, "there is no such run", code="not_found")
    return JSONResponse(found, headers=NO_STORE)


def _folder(request: Request) -> Path:
    if not is_operator(request):
        raise ApiError(403, "this is for the operator: who has the first key of the server", code="not_operator")
    folder = server_state(request).config.training
    if folder is None:
        raise ApiError(404, "start the server with --training FOLDER to see runs of glm4 finetune", code="no_training")
    return folder


def _described(folder: Path, name: str) -> dict[str, Any] | None:
    # The name is looked up among the runs that are there; it never becomes a path.
    run = next((one for one in find_runs(folder) if one.name == name), None)
    if run is None:
        return None
    metrics = read_metrics(run)
    samples = [
        {key: str(row.get(key, ""))[:_MAX_TEXT] for key in ("prompt", "answer", "reference")}
        | {"step": row.get("step")}
        for row in read_samples(run, NUM_SAMPLES)
    ]
    lines = {key: _line(metrics, key) for key in _LINES}
    return {"name": run.name, **_status(run), "lines": lines, "samples": samples}


def _status(run: Path) -> dict[str, Any]:
    status = read_status(run)
    return {key: status.get(key) for key in _STATUS}


def _line(rows: Sequence[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """The points of one line, thinned out evenly; the last one stays."""
    points = [(row["step"], row[key]) for row in rows if _is_number(row.get("step")) and _is_number(row.get(key))]
    every = max(1, math.ceil(len(points) / MAX_POINTS))
    kept = points[::-1][::every][::-1]
    return {"steps": [float(step) for step, _ in kept], "values": [float(value) for _, value in kept]}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
