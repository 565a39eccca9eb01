"""`glm4 plan`: how much memory a model needs, and whether this machine has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from glm4.cli import options
from glm4.cli.parameters import Argument, AsJson, Option

if TYPE_CHECKING:
    from glm4.model.config import ModelConfig
    from glm4.model.precision import Precision
    from glm4.planner import MemoryPlan

EXAMPLES = """
glm4 plan glm-4-9b-chat
glm4 plan glm-4-9b-chat --dtype int4 --context 32768 --batch 4
glm4 plan glm-4-32b-0414 --json
glm4 plan glm-4-9b-chat --train lora --max-length 2048 --gpu 24
glm4 plan glm-4-9b-chat --train full --devices 8 --zero 3 --gpu 80
"""

TRAINING = "Fine-tuning (with --train)"
METHODS = ("lora", "qlora", "ptuning_v2", "freeze", "full")
_BAR_WIDTH = 30
_BESIDE_BAR = 36  # columns of names and sizes
_SMALLER = {"fp32": ("bf16", "int8", "int4"), "bf16": ("int8", "int4"), "int8": ("int4",), "stored": ("int4",)}


def plan(
    model: Annotated[
        str, Argument(metavar="MODEL", help="A name from `glm4 models` (it need not be installed), or a path.")
    ],
    dtype: options.Dtype = "auto",
    kv_dtype: options.KvDtype = "auto",
    context: Annotated[
        int | None,
        Option(
            "--context",
            "--max-model-len",
            min=1,
            metavar="TOKENS",
            help="Length of one conversation. The default is as many tokens as fit.",
        ),
    ] = None,
    batch: Annotated[
        int, Option(min=1, metavar="N", help="Conversations at once, each of that length; of training: samples.")
    ] = 1,
    train: Annotated[
        str | None,
        Option("--train", metavar="METHOD", panel=TRAINING, help=f"Plan `glm4 finetune`: {', '.join(METHODS)}."),
    ] = None,
    max_length: Annotated[int, Option(min=16, metavar="TOKENS", panel=TRAINING, help="Longest sample.")] = 2048,
    accumulation: Annotated[
        int, Option(min=1, metavar="N", panel=TRAINING, help="Batches per step; they need no further memory.")
    ] = 1,
    checkpointing: Annotated[
        bool,
        Option("--checkpointing", "--no-checkpointing", panel=TRAINING, help="Compute activations anew in backward."),
    ] = True,
    devices: Annotated[int, Option(min=1, metavar="N", panel=TRAINING, help="Processes, with a device each.")] = 1,
    zero: Annotated[
        int | None, Option("--zero", metavar="STAGE", panel=TRAINING, help="DeepSpeed ZeRO 2 or 3 (FSDP: 3).")
    ] = None,
    freeze_layers: Annotated[
        int | None,
        Option("--freeze-layers", min=0, metavar="N", panel=TRAINING, help="Of method freeze; half by default."),
    ] = None,
    gpu: Annotated[
        float | None,
        Option("--gpu", metavar="GB", panel=TRAINING, help="Plan for GPUs of that size; else for this processor."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the memory a model needs, by part, without loading or downloading it.

    auto is what `glm4 chat` would take here: int8 weights if they fit (of 4-bit GGUF files: stored), else int4.
    With --train: what fine-tuning would need, and the nearest settings that fit.
    """
    from glm4.cli import console
    from glm4.model.precision import packed_dtype
    from glm4.planner import plan as plan_memory
    from glm4.system import memory

    config, name, packed, stored, mapped = find_config(model)
    if train is not None:
        from glm4.cli.plan_training import TrainingPlan, plan_training

        options = (train, dtype, max_length, batch, accumulation, checkpointing, devices, zero, gpu, freeze_layers)
        plan_training(TrainingPlan(*options), name, config, as_json=as_json)
        return
    if packed is not None:
        dtype = packed_dtype(dtype, packed)
    about: dict[str, Any] = {"kv_dtype": kv_dtype, "stored": stored, "mapped": mapped}
    result = plan_memory(config, dtype=dtype, context=context, batch=batch, **about)
    picture = _picture(config, result.dtype, packed or stored)
    if as_json:
        console.print_json(_as_dict(result, name, config, memory.total_memory()) | {"picture": picture})
        return

    def fits(dtype: str, batch: int) -> bool:
        return plan_memory(config, dtype=dtype, batch=batch, **about).largest_context > 0

    smaller = [name for name in _SMALLER.get(result.dtype, ()) if packed is None and fits(name, batch)]
    _show(result, name, memory.total_memory(), _advice(smaller, batch > 1 and fits(dtype, 1)))
    if picture is not None:
        console.stdout().print(
            f"A picture takes {picture['tokens']:,} tokens of the context. The first answer about one begins after "
            f"some {_duration(picture['first_token_seconds'])} here: {_duration(picture['tower_seconds'])} to look at "
            f"it, once per picture, and {_duration(picture['prompt_seconds'])} to read the prompt."
        )


def _picture(config: ModelConfig, dtype: str, own: Precision | None) -> dict[str, Any] | None:
    """What a picture costs; None if the model does not see."""
    from glm4.first_token import time_to_first_token
    from glm4.kernels import get_kernels
    from glm4.model.precision import named_precision

    seconds = time_to_first_token(config, named_precision(dtype, own), get_kernels("auto"))
    if seconds is None or config.vision is None:
        return None
    return {
        "tokens": config.vision.num_rows,
        "tower_seconds": seconds.tower,
        "prompt_seconds": seconds.prompt,
        "first_token_seconds": seconds.total,
    }


def _duration(seconds: float) -> str:
    """As exact as an estimate is: "45 s", "23 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class FoundModel(NamedTuple):
    """The shape of a model, its name, the precision if it is packed, the precision its file is in, and those of which
    there is a packed copy."""

    config: ModelConfig
    name: str
    packed: Precision | None = None
    stored: Precision | None = None
    mapped: Sequence[str] = ()


def find_config(model: str) -> FoundModel:
    """What is known about a model without reading its weights.

    From its files if they are on this machine, else from the table of published shapes.

    Raises:
        ModelNotFoundError: it is neither on this machine nor in that table.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.errors import ModelNotFoundError
    from glm4.loading.packed_cache import PackedCache
    from glm4.model.shapes import SHAPES
    from glm4.variants import get_variant

    variant = get_variant(model)
    try:
        path = hub.resolve(model, allow_download=False)
    except ModelNotFoundError:
        if variant is None or variant.name not in SHAPES:
            raise
        return FoundModel(SHAPES[variant.name], variant.name)
    with open_checkpoint(path) as checkpoint:
        precision = None if checkpoint.packed is None else checkpoint.packed.precision
        name = variant.name if variant is not None else model
        mapped = PackedCache(path).kept() if precision is None else [precision.name]
        return FoundModel(checkpoint.config, name, precision, checkpoint.stored_precision, mapped)


def _advice(smaller: list[str], alone: bool) -> str:
    """What to try if no context fits: other weight formats that do fit, or fewer conversations if a single one fits."""
    if smaller:
        *others, last = smaller
        return f"Try --dtype {', '.join(others)} or {last}." if others else f"Try --dtype {last}."
    return "Try a smaller --batch." if alone else "Try a smaller model."


def _as_dict(plan: MemoryPlan, name: str, config: ModelConfig, machine: int) -> dict[str, Any]:
    from glm4.model.tensors import num_parameters

    facts = ("dtype", "kv_dtype", "context", "batch", "fits", "largest_context", "model_context")
    sizes = ("kv_cache", "activations", "pictures", "loading", "runtime", "total", "available")
    return {
        "model": name,
        "parameters": num_parameters(config),
        **{key: getattr(plan, key) for key in facts},
        "bytes": {"weights": dict(plan.weights), **{key: getattr(plan, key) for key in sizes}, "machine": machine},
    }


def _show(plan: MemoryPlan, name: str, machine: int, advice: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from glm4.cli.console import human_bytes, stdout

    out = stdout()
    sequences = "" if plan.batch == 1 else f" x {plan.batch} conversations"
    out.print(
        f"{name}: {plan.dtype} weights, {plan.kv_dtype} KV cache, {plan.context:,} tokens{sequences}",
        style="bold",
    )
    scale = max(plan.total, plan.available, 1)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    width = max(0, min(_BAR_WIDTH, out.width - _BESIDE_BAR))  # names take precedence: a bar without a name is useless

    def add(label: str, nbytes: int, style: str, label_style: str = "") -> None:
        table.add_row(Text(label, label_style), human_bytes(nbytes), Text(_bar(nbytes, scale, width), style))

    for label, nbytes, style in _rows(plan):
        add(label, nbytes, style)
    table.add_row()
    add("needed at the peak", plan.total, "bold", "bold")
    add(f"free here (of {human_bytes(machine)})", plan.available, "dim")
    out.print(table)
    out.print(_verdict(plan, advice))


def _rows(plan: MemoryPlan) -> list[tuple[str, int, str]]:
    rows = [(f"weights: {part}", nbytes, "blue") for part, nbytes in plan.weights.items() if nbytes]
    rows.append(("KV cache", plan.kv_cache, "magenta"))
    rows.append(("activations", plan.activations, "cyan"))
    if plan.pictures:
        rows.append(("pictures kept", plan.pictures, "cyan"))
    rows.append(("program", plan.runtime, "dim"))
    if plan.loading > plan.running:
        rows.append(("while loading only", plan.loading, "yellow"))
    return rows


def _bar(nbytes: int, scale: int, width: int) -> str:
    eighths = round(nbytes / scale * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _verdict(plan: MemoryPlan, advice: str) -> str:
    limit = f"(the model's limit is {plan.model_context:,})"
    if plan.fits:
        if plan.largest_context == plan.model_context:
            return f"It fits, up to the model's full context of {plan.model_context:,} tokens."
        return f"It fits. The largest context that does is {plan.largest_context:,} tokens {limit}."
    if plan.largest_context:
        return (
            f"This context does not fit. The largest that does is {plan.largest_context:,} tokens {limit}; the KV "
            "cache may take 60 % of what is left after the weights."
        )
    return f"It does not fit here. {advice}"
