"""The `remote` backend: an OpenAI-compatible server does the computation; prompts and answers travel as token ids.

Works with servers that have vLLM's token route (`glm4 serve`, vLLM with `--enable-scale-out`), and with those whose
/v1/completions streams, takes a prompt of token ids and returns ids: `return_token_ids` (vLLM 0.10.2 and later,
SGLang), or `return_tokens_as_token_ids` in the log-probabilities (older vLLM).
"""

from __future__ import annotations

from glm4.backends.remote.backend import RemoteBackend
from glm4.backends.remote.options import RemoteOptions

__all__ = ["RemoteBackend", "RemoteOptions"]
