"""Fine-tuning: `glm4 finetune`. What needs torch says so; reading data, configurations and runs does not."""
