"""The `transformers` backend: Hugging Face's model classes on CUDA, ROCm, MPS or the CPU, with our own loop."""
