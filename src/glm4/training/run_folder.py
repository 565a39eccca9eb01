"""The folder of a training run, as trainer, `glm4 merge` and the web page see it. Needs no torch.

run/
  config.json            the TrainingConfig, complete
  status.json            {"state": "starting|running|done|failed", "step", "total_steps", "epoch", "pid",
                         "updated", "error"}
  metrics.jsonl          one object per log line: {"step", "epoch", "time", "loss", "learning_rate", "grad_norm",
                         "tokens_per_second", "tokens"} or {"step", "eval_loss", …}; a resumed run continues it
  samples.jsonl          {"step", "prompt", "answer", "reference"} of generation at evaluations
  loss.png               the plot
  checkpoint-<step>/     complete or absent
  adapter_config.json, adapter_model.safetensors   at the end; or a whole model in Hugging Face's layout
"""
