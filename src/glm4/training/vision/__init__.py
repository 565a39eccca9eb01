"""Fine-tuning of GLM-4V: the model in torch, its weights, and batches with pictures."""
