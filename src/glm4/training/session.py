"""The part of a run that needs torch: model, trainer, checkpoints, result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from glm4.backends.transformers.device import choose_device, choose_dtype, free_memory, memory_errors
from glm4.backends.transformers.weights import load_model
from glm4.checkpoints.hf_layout import hf_class
from glm4.errors import TrainingError
from glm4.model.tensors import num_parameters
from glm4.system.memory import map_large_blocks
from glm4.training import checkpoints
from glm4.training.answer_tasks import answer_tasks
from glm4.training.arguments import training_arguments
from glm4.training.batches import collate, collate_packed
from glm4.training.config import TrainingConfig
from glm4.training.defaults import method_name
from glm4.training.generation_metrics import GenerationMetrics
from glm4.training.listener import Listener, Summary
from glm4.training.memory import Device, estimate
from glm4.training.memory_advice import memory_note
from glm4.training.methods.table import METHODS
from glm4.training.metrics_log import MetricsLog
from glm4.training.objective import LossModel, Objective, SupervisedObjective
from glm4.training.preferences import preference_rows
from glm4.training.quantized import load_quantized
from glm4.training.reporting import Reporter, Stopper, stop_on_signals
from glm4.training.result import write_result
from glm4.training.run import Prepared, RunResult
from glm4.training.trainer import GlmTrainer
from glm4.training.vision.batches import PictureCollator
from glm4.training.vision.loading import load_vision_model

_ROOMY = 2.2  # times the planned memory: what glibc's own way with large blocks takes at most


def train_run(run: Prepared, log: MetricsLog | None, listener: Listener) -> RunResult:
    """Load the model, train it, and write the result.

    Args:
        log: None in processes that write nothing.

    Raises:
        Glm4Error: see `run.finetune`.
    """
    config = run.config
    device = choose_device(config.device)
    dtype = _dtype(config, device, run)
    args = training_arguments(config, device, bf16=dtype == "bf16", evaluates=bool(len(run.validation)))
    PartialState().wait_for_everyone()  # the folder is ready
    measure = _measure(run, log)
    free = free_memory(args.device)
    memory = _memory(run, args, dtype, free, listener)
    with memory_errors("training", args.device):
        facts = _facts(run, args, dtype)
        resumed = _newest(config, facts)
        trainer = _trainer(run, args, dtype, facts, log, listener, measure)
        if resumed is not None:
            trainer.restore_position(checkpoints.read_run_state(resumed))
        if log is not None:
            log.rewind(0 if resumed is None else checkpoints.step_of(resumed))
        summary = _summary(run, trainer, dtype, resumed, memory, free)
        listener.started(summary)
        if resumed is not None and summary.resumed >= summary.steps:
            trainer.restore_finished(resumed)  # what is left is to write the result; `train` would take a step
        else:
            with stop_on_signals(trainer):
                trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        return _finish(run, trainer, dtype, log)


def _dtype(config: TrainingConfig, device: torch.device, run: Prepared) -> str:
    """ "fp32" or "bf16": of the computation, and of weights that are not trained."""
    if config.dtype != "auto":
        return config.dtype
    if device.type == "cpu":
        return choose_dtype("auto", device, num_parameters(run.checkpoint.config))
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32"
    return "bf16"


def _trainer(
    run: Prepared,
    args: Any,
    dtype: str,
    facts: Mapping[str, Any],
    log: MetricsLog | None,
    listener: Listener,
    measure: GenerationMetrics | None,
) -> GlmTrainer:
    config = run.config
    method = METHODS[config.method]
    save = method.save
    load = load_model if run.checkpoint.config.vision is None else load_vision_model
    if config.quantize == "nf4":
        load = load_quantized
    base: Any = load(run.checkpoint, args.device, "fp32" if method.trains_all else dtype, listener.loading)
    base.config._name_or_path = base.name_or_path = run.name
    torch.manual_seed(config.seed)  # of the numbers that the method adds
    model = method.apply(base, config)
    if config.gradient_checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    objective, train, validation = _objective(run, model, listener, bf16=dtype == "bf16")
    trainer = GlmTrainer(
        LossModel(model, objective),
        args,
        train=train,
        validation=validation,
        by_length=config.group_by_length,
        max_tokens=config.data.max_length * config.per_device_train_batch_size if config.packing else 0,
        write_adapter=None if save is None else lambda model, folder: save(model, folder, run.name),
        facts=facts,
        measure=measure,
        callbacks=[Reporter(log, listener)],
    )
    trainer.add_callback(Stopper(trainer))
    return trainer


def _objective(run: Prepared, model: Any, listener: Listener, *, bf16: bool) -> tuple[Objective, Any, Any]:
    """The objective, and the rows of training and validation."""
    make = _collate(run, packed=run.config.packing)
    if run.config.objective == "dpo":
        return preference_rows(run, model, make, listener, bf16=bf16)
    return SupervisedObjective(make), run.train, run.validation


def _collate(run: Prepared, *, packed: bool = False) -> Any:
    """Makes batches of examples, with pictures if the model sees."""
    make: Any = partial(collate_packed if packed else collate, pad_id=run.checkpoint.config.pad_token_id or 0)
    return make if run.processor.images is None else PictureCollator(make, run.processor.images)


def _measure(run: Prepared, log: MetricsLog | None) -> GenerationMetrics | None:
    """What answers prompts at evaluations.

    Raises:
        InvalidRequestError: the validation data has no prompts.
    """
    config = run.config
    if not config.generate_every:
        return None
    return GenerationMetrics(
        run.processor,
        answer_tasks(run.validation, run.processor, config.generate_samples),
        _collate(run),
        every=config.generate_every,
        eval_steps=config.eval_steps,
        max_tokens=config.generate_max_tokens,
        batch_size=config.per_device_eval_batch_size,
        write_sample=None if log is None else log.sample,
    )


def _facts(run: Prepared, args: Any, dtype: str) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    facts = {"processes": args.world_size, "dtype": dtype, "model": run.name}
    if hasattr(run.train, "__len__"):
        lengths = getattr(run.train, "lengths", None)
        tokens = int(lengths.sum()) if lengths is not None else 0
        facts |= {"rows": len(run.train), "tokens_of_data": tokens}
    return facts


def _newest(config: TrainingConfig, facts: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        TrainingError: the data, the number of processes or the format of numbers have changed since.
    """
    found = checkpoints.find_checkpoints(Path(config.output))
    if not found:
        return None
    stored = checkpoints.read_run_state(found[-1])
    for key, value in facts.items():
        if stored.get(key) != value:
            raise TrainingError(
                f"{found[-1]} cannot be continued: {key.replace('_', ' ')} was {stored.get(key)} and is {value};"
                " name another output, or begin anew with resume: false (--no-resume)"
            )
    return found[-1]


def _memory(run: Prepared, args: Any, dtype: str, free: int, listener: Listener) -> int | None:
    """Estimated bytes at the peak; None for models that see. Says what to change if they are not free.

    Raises:
        OutOfMemoryError: not even the weights fit.
    """
    shape, longest = run.checkpoint.config, run.config.data.max_length
    if shape.vision is not None:
        return None
    lengths = getattr(run.train, "lengths", None)
    if lengths is not None and len(lengths) and not run.config.packing:
        longest = min(longest, int(max(lengths)))
    config = replace(
        run.config, dtype="fp32" if dtype == "fp32" else "bf16", data=replace(run.config.data, max_length=longest)
    )
    device: Device = "cpu" if args.device.type == "cpu" else "gpu"
    fused = hf_class(run.checkpoint).fused_gate_up
    memory = estimate(config, shape, device=device, devices=args.world_size, fused=fused).total
    if device == "cpu":
        free //= args.world_size  # which share it
        if free < _ROOMY * memory:
            map_large_blocks()  # a quarter slower
    if note := memory_note(config, shape, free, device=device, devices=args.world_size, fused=fused):
        listener.note(note)
    return memory


def _summary(
    run: Prepared, trainer: GlmTrainer, dtype: str, resumed: Path | None, memory: int | None, free: int
) -> Summary:
    config, args = run.config, trainer.args
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    lengths = getattr(run.train, "lengths", None)
    return Summary(
        model=run.name,
        method=method_name(config),
        device=str(args.device),
        dtype=dtype,
        trainable=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        parameters=num_parameters(run.checkpoint.config),
        rows=len(run.train) if hasattr(run.train, "__len__") else None,
        validation_rows=len(run.validation),
        tokens=None if lengths is None else int(lengths.sum()),
        steps=steps,
        samples_per_step=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        processes=args.world_size,
        learning_rate=args.learning_rate,
        resumed=0 if resumed is None else checkpoints.step_of(resumed),
        memory=memory,
        free=free,
    )


def _finish(run: Prepared, trainer: GlmTrainer, dtype: str, log: MetricsLog | None) -> RunResult:
    state, output = trainer.state, Path(run.config.output)
    interrupted = trainer.interrupted and state.global_step < state.max_steps
    if not interrupted:
        write_result(trainer, run, dtype)
    result = RunResult(
        output=output,
        steps=state.global_step,
        total_steps=state.max_steps,
        loss=trainer.last_loss,
        eval_loss=state.best_metric,
        best_step=state.best_global_step,
        interrupted=interrupted,
    )
    if log is not None:
        log.plot()
        log.status(
            state="stopped" if interrupted else "done",
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=round(state.epoch or 0, 6),
            best_step=state.best_global_step,
            eval_loss=state.best_metric,
        )
    return result
