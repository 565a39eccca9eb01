"""A program for test_lifecycle: a server whose tokenizer takes minutes for every text, as it would for a huge one.

Usage: python slow_tokenizer.py FOLDER
"""

from __future__ import annotations

import sys
import time

from glm4.llm import LLM
from glm4.server.app import create_app
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.run import bind, run


def slow(text: str) -> list[int]:
    print("tokenizing", file=sys.stderr, flush=True)
    time.sleep(3600)
    return [1]


if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="fp32", max_model_len=512)
    vars(llm.tokenizer)["_encode_plain"] = slow
    config = ServerConfig((ModelSpec(sys.argv[1], ("slow",)),), port=0, shutdown_timeout=1)
    listener = bind(config)
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    run(create_app(config, lambda spec, progress: llm), config, listener)
