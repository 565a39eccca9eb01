"""The `glm4` program, but whatever model it loads answers as the file ANSWERS says: a JSON list, one per round."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, __file__]


def load(model: str, **options: Any) -> Any:
    """In the place of `options.load_llm`."""
    from scripted_agent import Script

    answers = json.loads(Path(os.environ["ANSWERS"]).read_text(encoding="utf-8"))
    return Script(Path(os.environ["GLM4_HOME"]) / "scripted", answers, dialect=os.environ.get("DIALECT", "glm4")).llm


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agent")]
    from glm4.cli import main, options

    options.load_llm = load
    sys.exit(main())
