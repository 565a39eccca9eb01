"""Options that several commands share: which model, how to run it, how to sample."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli.parameters import Option
from glm4.system.cpus import MOST_THREADS

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.sampling_params import SamplingParams

_ENGINE, _SAMPLING = "Engine", "Sampling"
ADAPTER = "lora"

Model = Annotated[
    str,
    Option(
        "--model",
        "-m",
        envvar="GLM4_MODEL",
        metavar="MODEL",
        help="A name from `glm4 models`, a Hugging Face name, a folder, or a GGUF file.",
    ),
]
Dtype = Annotated[
    str,
    Option(
        rich_help_panel=_ENGINE,
        metavar="FORMAT",
        help="Weight format: auto, fp32, bf16, int8, int4, or stored, which keeps the codes of 4-bit GGUF files.",
    ),
]
KvDtype = Annotated[
    str,
    Option(
        "--kv-dtype",
        rich_help_panel=_ENGINE,
        metavar="FORMAT",
        help="KV cache format: auto, fp32, fp16, or int8 for contexts twice as long.",
    ),
]
Context = Annotated[
    int | None,
    Option(
        min=1,
        rich_help_panel=_ENGINE,
        show_default=False,
        metavar="TOKENS",
        help="Longest prompt plus answer, in tokens. The default is what model and memory allow.",
    ),
]
Threads = Annotated[
    int | None,
    Option(
        min=1,
        max=MOST_THREADS,
        rich_help_panel=_ENGINE,
        show_default=False,
        metavar="N",
        help="Processor threads. The default is one per core.",
    ),
]
Lora = Annotated[
    str | None,
    Option(
        rich_help_panel=_ENGINE,
        show_default=False,
        metavar="FOLDER",
        help="A LoRA adapter of this model (PEFT's format) to answer with.",
    ),
]
MaxTokens = Annotated[
    int | None, Option(min=1, rich_help_panel=_SAMPLING, metavar="TOKENS", help="Longest answer, in tokens.")
]
Temperature = Annotated[
    float | None,
    Option(
        rich_help_panel=_SAMPLING,
        show_default=False,
        metavar="NUMBER",
        help="0 always takes the likeliest token; higher is freer.",
    ),
]
TopP = Annotated[
    float | None,
    Option(
        rich_help_panel=_SAMPLING,
        show_default=False,
        metavar="SHARE",
        help="Sample from the likeliest tokens up to this probability.",
    ),
]
TopK = Annotated[
    int | None,
    Option(
        rich_help_panel=_SAMPLING,
        show_default=False,
        metavar="N",
        help="Sample from this many of the likeliest tokens; 0 is all.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    Option(
        rich_help_panel=_SAMPLING,
        show_default=False,
        metavar="NUMBER",
        help="Above 1 discourages repeating what was said.",
    ),
]
Seed = Annotated[
    int | None,
    Option(rich_help_panel=_SAMPLING, show_default=False, metavar="N", help="Same seed and prompt, same answer."),
]
Stop = Annotated[
    list[str] | None,
    Option(
        rich_help_panel=_SAMPLING,
        show_default=False,
        metavar="TEXT",
        help="Text that ends the answer; may be repeated.",
    ),
]


def load_llm(
    model: str,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    max_num_seqs: int = 1,
    kv_memory: int | None = None,
    lora: str | None = None,
) -> LLM:
    """Load a model with a progress bar on standard error, and the adapter in folder `lora` under the name `ADAPTER`.

    Args:
        kv_memory: bytes for the KV cache; None is what is needed, up to a share of what is free.

    Raises:
        Glm4Error: as `LLM` does.
    """
    from glm4.cli.console import progress

    with progress() as report:
        report("loading glm4", 0, 0)
        _import_engine()
        from glm4.llm import LLM

        check_formats(dtype, kv_dtype)
        llm = LLM(
            model,
            dtype=dtype,
            kv_cache_dtype=kv_dtype,
            kv_cache_memory=kv_memory,
            max_model_len=context,
            max_num_seqs=max_num_seqs,
            num_threads=threads,
            progress=report,
        )
        try:
            if lora is not None:
                llm.load_adapter(ADAPTER, lora)
        except BaseException:
            llm.close()
            raise
        return llm


def check_formats(dtype: str, kv_dtype: str) -> None:
    """Refuse unknown formats before a model is downloaded for them.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    from glm4.errors import InvalidRequestError
    from glm4.model.kv_cache import KV_DTYPES
    from glm4.model.precision import DTYPES

    if dtype not in DTYPES:
        raise InvalidRequestError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}", param="dtype")
    if kv_dtype not in ("auto", *KV_DTYPES):
        known = ", ".join(("auto", *KV_DTYPES))
        raise InvalidRequestError(f"--kv-dtype must be one of {known}, not {kv_dtype!r}", param="kv_dtype")


def _import_engine() -> None:
    """Import what `load_llm` needs, NumPy above all."""
    import gc

    from glm4.system.gc_pause import collection_paused

    # Our kernels have threads of their own; NumPy's, made at its import, would spin and never be asked for anything.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with collection_paused():
        import glm4.llm  # noqa: F401
    gc.freeze()  # modules stay to the end, and no collection need walk them again


def adapter_name(llm: LLM) -> str | None:
    """The adapter that `load_llm` loaded, for requests to name."""
    return ADAPTER if llm.adapters() else None


def given(**params: Any) -> dict[str, Any]:
    """The sampling options that were given (None: not given), checked before a model is loaded.

    Raises:
        InvalidRequestError: an impossible value; `.param` names the option.
    """
    from glm4.sampling_params import SamplingParams

    chosen = {name: value for name, value in params.items() if value is not None}
    SamplingParams(**chosen)
    return chosen


def sampling_params(llm: LLM, chosen: Mapping[str, Any]) -> SamplingParams:
    """The model's own sampling defaults, with the chosen options on top."""
    return llm.default_sampling_params().replace(**chosen)
