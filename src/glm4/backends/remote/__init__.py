"""The `remote` backend: an OpenAI-compatible server does the computation; prompts and answers travel as token ids.

Works with servers whose /v1/completions streams, takes a prompt of token ids and returns ids: `return_token_ids`
(vLLM 0.10.2 and later, SGLang, `glm4 serve`), or `return_tokens_as_token_ids` in the log-probabilities (older vLLM).
"""

from __future__ import annotations

from glm4.backends.remote.backend import RemoteBackend
from glm4.backends.remote.options import RemoteOptions

__all__ = ["RemoteBackend", "RemoteOptions"]
