"""From a prompt with pictures to vLLM's form of it."""

from __future__ import annotations

from typing import Any

from glm4.prompt import Prompt


def prompt_inputs(prompt: Prompt) -> dict[str, Any]:
    """What vLLM takes for a prompt: its ids, and beside them the pixels of its pictures.

    vLLM makes a picture's rows of three ids: begin, content, end. Pictures are cached, and prefixes told apart, by
    `multi_modal_uuids`, our digests.
    """
    if not prompt.spans:
        return {"prompt_token_ids": list(prompt.ids)}
    digests = [span.digest for span in prompt.spans]
    return {
        "prompt_token_ids": prompt.short_ids,
        "multi_modal_data": {"image": [prompt.pixels[digest] for digest in digests]},
        "multi_modal_uuids": {"image": digests},
    }
