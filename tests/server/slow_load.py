"""A program for test_lifecycle: a server whose model takes for ever to load, as a huge one would.

Usage: python slow_load.py FOLDER
"""

from __future__ import annotations

import sys
import time
from typing import Any

from glm4.llm import LLM
from glm4.server.app import create_app
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.run import bind, run


def load(spec: ModelSpec, progress: Any) -> LLM:
    print("loading", file=sys.stderr, flush=True)
    time.sleep(3600)
    return LLM(spec.source)


if __name__ == "__main__":
    config = ServerConfig((ModelSpec(sys.argv[1], ("slow",)),), port=0)
    listener = bind(config)
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    run(create_app(config, load), config, listener)
