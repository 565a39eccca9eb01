"""POST /v1/embeddings: mean-pooled hidden states of the language model, of unit length.

These models were not trained to embed text; the vectors are good for rough similarity, not as a retrieval model.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.fields import STRING, Field, only, text
from glm4.api.openai.fields import COMPLETION_FIELDS, read_fields
from glm4.api.openai.request import read_prompts
from glm4.errors import InvalidRequestError
from glm4.requests.input_processor import PreparedRequest
from glm4.server.generation import whole_many
from glm4.server.memory import parse, prepare
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import until_disconnect


def _dimensions(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequestError(f"{name} must be a whole number of at least 1", param=name)
    return value


EMBEDDING_FIELDS: Mapping[str, Field] = {
    "model": Field(STRING, text),
    "user": Field(STRING, text),
    "input": COMPLETION_FIELDS["prompt"],
    "encoding_format": Field({"enum": ["float", "base64"]}, only("float", "base64")),
    "dimensions": Field({"type": "integer", "minimum": 1}, _dimensions),
}


async def embeddings(request: Request) -> Response:
    """One vector per text."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    given = await parse(lambda: read_fields(body, EMBEDDING_FIELDS))
    inputs = await parse(lambda: read_prompts(given.get("input"), "input"))
    return await until_disconnect(request, _answer(state, target, inputs, given))


async def _answer(
    state: ServerState, target: Target, inputs: list[str | list[int]], given: Mapping[str, Any]
) -> Response:
    def prepare_all() -> list[PreparedRequest]:
        return [target.llm.prepare_embedding(one, adapter=target.adapter) for one in inputs]

    batch = await prepare(target.longest_text, prepare_all)
    outputs = await whole_many(state, target, batch)
    data = []
    for index, output in enumerate(outputs):
        vector = np.asarray(output.as_embedding().embedding, np.float32)
        size = given.get("dimensions", len(vector))
        if size > len(vector):
            raise InvalidRequestError(
                f"dimensions is {size}; this model's vectors have {len(vector)}", param="dimensions"
            )
        if size < len(vector):
            vector = vector[:size] / max(float(np.linalg.norm(vector[:size])), 1e-12)
        encoded: Any = vector.tolist()
        if given.get("encoding_format") == "base64":
            encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": encoded})
    tokens = sum(len(prepared.prompt_ids) for prepared in batch)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": target.name, "usage": usage})
