"""Options that several commands share: which model, how to run it, how to sample."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli.parameters import Option, UsageError
from glm4.system.cpus import MOST_THREADS

if TYPE_CHECKING:
    from glm4.llm import LLM

ENGINE = "Engine"
_SAMPLING = "Sampling"
ADAPTER = "lora"

Model = Annotated[
    str,
    Option(
        "--model",
        "-m",
        envvar="GLM4_MODEL",
        help="A name from `glm4 models`, a Hugging Face name, a folder, or a GGUF file.",
    ),
]
Dtype = Annotated[
    str,
    Option(
        metavar="FORMAT",
        panel=ENGINE,
        help="Weight format: auto, fp32, bf16, int8, int4, or stored, which keeps the codes of 4-bit GGUF files.",
    ),
]
KvDtype = Annotated[
    str,
    Option(
        "--kv-dtype",
        "--kv-cache-dtype",
        metavar="FORMAT",
        panel=ENGINE,
        help="KV cache format: auto, fp32, fp16, or int8 for contexts twice as long.",
    ),
]
Threads = Annotated[
    int | None,
    Option(
        "--threads",
        metavar="N",
        panel=ENGINE,
        min=1,
        max=MOST_THREADS,
        help="Processor threads; otherwise one per core.",
    ),
]
Lora = Annotated[
    str | None,
    Option(
        "--lora",
        "--adapter",
        metavar="FOLDER",
        panel=ENGINE,
        help="An adapter of this model to answer with: LoRA or P-Tuning v2, in PEFT's format.",
    ),
]
AllowManyImages = Annotated[
    bool,
    Option(
        "--allow-many-images",
        panel=ENGINE,
        help="More than one picture per conversation, which goes beyond what GLM-4V was trained with.",
    ),
]
MediaDomains = Annotated[
    list[str] | None,
    Option(
        "--media-domains",
        "--allowed-media-domains",
        metavar="HOST",
        panel=ENGINE,
        help="Fetch pictures that requests name by http(s) address from this host; .example.com is all names below it,"
        " too, and '*' every public host. May be repeated; without it nothing is fetched.",
    ),
]
MaxTokens = Annotated[int | None, Option(metavar="TOKENS", panel=_SAMPLING, min=1, help="Longest answer, in tokens.")]


@dataclass(frozen=True)
class BackendOptions:
    """What computes, and where; the names are those of `LLM`'s keyword arguments."""

    backend: Annotated[
        str,
        Option(
            metavar="NAME",
            panel=ENGINE,
            help="What computes: local, transformers, vllm, openvino, or remote for the server at --base-url.",
        ),
    ] = "local"
    device: Annotated[
        str,
        Option(metavar="NAME", panel=ENGINE, help="Where another backend computes: cpu, cuda, cuda:1, mps; CPU, GPU."),
    ] = ""
    tensor_parallel_size: Annotated[
        int | None,
        Option(
            "--tensor-parallel-size", "-tp", metavar="N", panel=ENGINE, min=1, help="GPUs that share each layer (vllm)."
        ),
    ] = None
    pipeline_parallel_size: Annotated[
        int | None,
        Option(
            "--pipeline-parallel-size",
            "-pp",
            metavar="N",
            panel=ENGINE,
            min=1,
            help="Groups of GPUs that share the model by layers (vllm).",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        Option(metavar="SHARE", panel=ENGINE, min=0.01, max=1, help="Share of each GPU's memory to use (vllm)."),
    ] = None
    engine_args: Annotated[
        str,
        Option(metavar="JSON", panel=ENGINE, help="Further options of the backend, in an object (docs/backends.md)."),
    ] = ""
    base_url: Annotated[
        str,
        Option(
            metavar="URL",
            panel=ENGINE,
            help="Address of a server with OpenAI's API that computes; GLM4_REMOTE_API_KEY is its key.",
        ),
    ] = ""

    def for_llm(self) -> dict[str, Any]:
        """Those that were given, for `LLM`: only some backends accept each of them.

        Raises:
            UsageError: `--engine-args` is not an object, or repeats an option.
        """
        given = {name: value for name, value in asdict(self).items() if value not in ("", None)}
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if given.get(name) == 1:  # splits nothing, with any backend
                del given[name]
        more = _object("--engine-args", given.pop("engine_args", "{}"))
        for name in more:
            if name == "backend" or getattr(self, name, None) != getattr(type(self), name, None):
                raise UsageError(f"--engine-args has {name!r}, which has an option of its own; give one of the two")
        return given | more


@dataclass(frozen=True)
class EngineOptions(BackendOptions):
    """How to run a model; the names are those of `LLM`'s keyword arguments."""

    dtype: Dtype = "auto"
    kv_cache_dtype: KvDtype = "auto"
    max_model_len: Annotated[
        int | None,
        Option(
            "--context",
            "--max-model-len",
            metavar="TOKENS",
            panel=ENGINE,
            min=1,
            help="Longest prompt plus answer; otherwise what model and memory allow.",
        ),
    ] = None
    num_threads: Threads = None
    kv_store: Annotated[
        str,
        Option(
            "--kv-store",
            metavar="FOLDER",
            panel=ENGINE,
            help="Keep the KV cache of long prompts here, so that another question about one starts at once, even after"
            " a restart.",
        ),
    ] = ""
    kv_store_gb: Annotated[
        float | None,
        Option(
            "--kv-store-gb",
            metavar="GB",
            panel=ENGINE,
            min=0.001,
            max=1e6,
            help="What may lie there; the least recently used goes first. The default is 10.",
        ),
    ] = None
    kv_store_dtype: Annotated[
        str,
        Option(
            "--kv-store-dtype",
            metavar="FORMAT",
            panel=ENGINE,
            help="int8 rounds what is kept there (the default), native keeps every bit; an int8 KV cache is never"
            " rounded again.",
        ),
    ] = ""
    kv_store_min: Annotated[
        int | None,
        Option(
            "--kv-store-min",
            metavar="TOKENS",
            panel=ENGINE,
            min=0,
            help="Shortest prompt to keep there. The default is 512.",
        ),
    ] = None

    def for_llm(self) -> dict[str, Any]:
        """As `BackendOptions.for_llm`.

        Raises:
            UsageError: as there, or a store is described but not named.
        """
        given = super().for_llm()
        for name in ("kv_store_gb", "kv_store_dtype", "kv_store_min"):
            if name in given and "kv_store" not in given:
                raise UsageError(f"--{name.replace('_', '-')} says how to keep the KV cache, but not where: --kv-store")
        if "kv_store_gb" in given:
            given["kv_store_bytes"] = int(given.pop("kv_store_gb") * 1e9)
        return given


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{option} takes a JSON object, such as '{{\"max_num_seqs\": 16}}', not {text!r:.60}")
    return value


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens; None uses the model's own default."""

    temperature: Annotated[
        float | None,
        Option(metavar="NUMBER", panel=_SAMPLING, help="0 always takes the most likely token; higher is freer."),
    ] = None
    top_p: Annotated[
        float | None,
        Option(metavar="SHARE", panel=_SAMPLING, help="Sample from the most likely tokens up to this probability."),
    ] = None
    top_k: Annotated[
        int | None,
        Option(metavar="N", panel=_SAMPLING, help="Sample from this many of the most likely tokens; 0 is all."),
    ] = None
    repetition_penalty: Annotated[
        float | None, Option(metavar="NUMBER", panel=_SAMPLING, help="Above 1 discourages repeating what was said.")
    ] = None
    seed: Annotated[int | None, Option(metavar="N", panel=_SAMPLING, help="Same seed and prompt, same answer.")] = None
    stop: Annotated[
        list[str] | None, Option(metavar="TEXT", panel=_SAMPLING, help="Text that ends the answer; may be repeated.")
    ] = None

    def given(self, **more: Any) -> dict[str, Any]:
        """The options that were given, these and `more`, validated before a model is loaded.

        Raises:
            InvalidRequestError: an invalid value; `.param` names the option.
        """
        from glm4.cli.console import clean_text
        from glm4.sampling_params import SamplingParams

        chosen = {name: value for name, value in (asdict(self) | more).items() if value is not None}
        if self.stop:
            chosen["stop"] = [clean_text(text) for text in self.stop]
        SamplingParams(**chosen)
        return chosen


def load_llm(model: str, *, lora: str | None = None, **options: Any) -> LLM:
    """Load a model with a progress bar on standard error, and the adapter in folder `lora` under the name `ADAPTER`.

    Args:
        options: for `LLM`.

    Raises:
        Glm4Error: as `LLM` does.
    """
    from glm4.cli.console import progress

    with progress() as report:
        report("loading glm4", 0, 0)
        import_engine(**options)
        from glm4.llm import LLM

        options |= adapter_options(options, 0 if lora is None else 1)
        if lora is not None:
            check_adapters(model, [Path(lora)], options)
        llm = LLM(model, progress=report, **options)
        try:
            if lora is not None:
                llm.load_adapter(ADAPTER, lora)
        except BaseException:
            llm.close()
            raise
        return llm


def check_formats(dtype: str = "auto", kv_dtype: str = "auto") -> None:
    """Reject formats that our own engine does not know before a model is downloaded for them.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    from glm4.model.kv_cache import check_kv_dtype
    from glm4.model.precision import check_dtype

    check_dtype(dtype, "--dtype")
    check_kv_dtype(kv_dtype, "--kv-dtype")


def import_engine(backend: str = "local", **options: Any) -> None:
    """Import what `load_llm` needs, NumPy above all, and check its options before a model is downloaded for them.

    Nothing may import NumPy before it.

    Raises:
        InvalidRequestError: there is no such backend, or it has no such option; `.param` names it.
        MissingExtraError: the backend needs a package that is not installed.
    """
    import gc

    from glm4.system.gc_pause import collection_paused

    # Our kernels have their own threads; NumPy's, created at import, would spin without ever being used.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with collection_paused():
        import glm4.llm  # noqa: F401
        from glm4.open_model import read_options

        if backend == "local":
            check_formats(options.get("dtype", "auto"), options.get("kv_cache_dtype", "auto"))
        row, _, _ = read_options(backend, options)
        if not row.packages:  # those take seconds: only once the model is there
            row.backend_class()
    gc.freeze()  # modules live until exit, so collections need not traverse them


def check_adapters(model: str, folders: Iterable[Path], options: Mapping[str, Any]) -> None:
    """Refuse adapters of another model before this one is loaded, which takes longer than to look at their headers.

    Args:
        options: of `LLM`; backends that load something else than our readers read check by themselves.

    Raises:
        Glm4Error: see `loading.adapters.check_adapter`.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.errors import ModelNotFoundError
    from glm4.loading.adapters import check_adapter
    from glm4.variants import get_variant

    if options.get("backend", "local") not in ("local", "transformers"):
        return
    try:
        path = hub.resolve(model, allow_download=False)
    except ModelNotFoundError:
        return  # it is downloaded first, or the error comes from there
    with open_checkpoint(path, variant=get_variant(model)) as checkpoint:
        for folder in folders:
            check_adapter(folder, checkpoint)


def adapter_options(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What makes room for adapters where a backend has none unless asked."""
    from glm4.backends.table import backend_row

    made = backend_row(options.get("backend", "local")).options_class()
    off = count > 0 and "max_adapters" not in options and getattr(made, "max_adapters", None) == 0
    return {"max_adapters": count} if off else {}


def adapter_name(llm: LLM) -> str | None:
    """The adapter that `load_llm` loaded, for requests to name."""
    return ADAPTER if any(adapter.name == ADAPTER for adapter in llm.adapters()) else None
