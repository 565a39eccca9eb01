"""A program for test_apps: a server with an app that cannot start.

Usage: python failing_start.py SECONDS, which is how long its model takes to load.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from starlette.applications import Starlette

from glm4.errors import CheckpointError, StoreError
from glm4.llm import LLM
from glm4.server.app import create_app
from glm4.server.app_parts import App
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.run import bind, run
from glm4.server.state import ServerState, find_state


def load(spec: ModelSpec, progress: Any) -> LLM:
    time.sleep(float(sys.argv[1]))
    raise CheckpointError("there is no model")


async def start(app: Starlette) -> None:
    if sys.argv[1] == "0":
        await find_state(app, ServerState).models.loaded()
    raise StoreError("the notes cannot be opened")


def stopping(name: str) -> Any:
    async def stop(app: Starlette) -> None:
        print(f"{name} stopped", file=sys.stderr)

    return stop


if __name__ == "__main__":
    config = ServerConfig((ModelSpec("m", ("m",)),), port=0)
    apps = [App("first", stop=stopping("first")), App("broken", start=start, stop=stopping("broken"))]
    run(create_app(config, load, apps), config, bind(config))
