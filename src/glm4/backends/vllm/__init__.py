"""The `vllm` backend: vLLM's engine in this process."""
