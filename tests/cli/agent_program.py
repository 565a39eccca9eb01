"""The `glm4` program, but whatever model it loads answers as the file ANSWERS says: a JSON list, one per round.

What it was asked last is in `scripted/prompts.txt` of the home.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, __file__]


def load(model: str, **options: Any) -> Any:
    """In the place of `options.load_llm`."""
    from scripted_agent import Script

    folder = Path(os.environ["GLM4_HOME"]) / "scripted"

    def noted(answer: str) -> Callable[[str], str]:
        def note(prompt: str) -> str:
            (folder / "prompts.txt").write_text(prompt, encoding="utf-8")
            return answer

        return note

    answers = json.loads(Path(os.environ["ANSWERS"]).read_text(encoding="utf-8"))
    return Script(folder, list(map(noted, answers))).llm


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agent")]
    from glm4.cli import main, options

    options.load_llm = load
    sys.exit(main())
