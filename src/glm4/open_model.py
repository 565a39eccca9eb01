"""`open_model`: turn a model name or path into a backend and the processor that handles its text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from glm4.backends.base import Backend, ModelFiles
from glm4.backends.table import BackendRow, backend_row
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.checkpoints.text_files import read_text_files
from glm4.errors import CheckpointError, TokenizerError
from glm4.hub import resolve
from glm4.hub.store import Progress
from glm4.loading.cache_entries import discard
from glm4.loading.packed_cache import BackgroundWrite, PackedCache
from glm4.requests.image_inputs import ImageOptions
from glm4.requests.processor import Processor
from glm4.variants import Variant, get_variant

if TYPE_CHECKING:
    from glm4.backends.local import LocalBackend, LocalOptions


class ModelOptions(TypedDict, total=False):
    """How to run a model, for type checkers: the options of all backends, which document them, and `ImageOptions`."""

    # ImageOptions, with every backend
    allow_many_images: bool
    media_domains: Sequence[str] | None
    # LocalOptions
    dtype: str
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    kv_cache_memory: int | None
    num_threads: int | None
    kernels: str
    enable_prefix_caching: bool
    speculation: bool
    max_adapters: int
    adapter_memory: int
    picture_cache_memory: int
    kv_store: str | os.PathLike[str] | None
    kv_store_bytes: int
    kv_store_dtype: str
    kv_store_min: int
    # TransformersOptions, beside those that it shares with LocalOptions
    device: str
    # RemoteOptions
    base_url: str
    remote_model: str | None
    api_key: str | None
    connect_timeout: float
    first_token_timeout: float
    token_timeout: float
    max_retries: int
    retry_delay: float
    # VllmOptions
    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    enforce_eager: bool
    quantization: str | None
    max_lora_rank: int
    engine_args: Mapping[str, Any]
    # OpenVINOOptions, beside those that it shares with LocalOptions and TransformersOptions
    compute_precision: str
    ov_config: Mapping[str, Any]


@dataclass(frozen=True)
class OpenModel:
    """A backend, the processor that handles its text, and what must be closed with them.

    Attributes:
        checkpoint: the weight files, if our engine reads them.
        kept: writes the packed form of the weights to disk.
    """

    backend: Backend
    processor: Processor
    checkpoint: Checkpoint | None = None
    kept: BackgroundWrite | None = None

    def close(self) -> None:
        """Free memory and files. Waits if the packed form is still being written."""
        if self.kept is not None:
            self.kept.finish()
        self.backend.close()
        if self.checkpoint is not None:
            self.checkpoint.close()


def open_model(
    model: str, *, backend: str = "local", progress: Progress | None = None, options: Mapping[str, Any] | None = None
) -> OpenModel:
    """Find a model, download any missing files, and open it with a backend.

    Args:
        model: a name (`starter`, `glm-4-9b-chat`, `THUDM/glm-4-9b-chat-hf` …), a folder or a GGUF file.
        backend: a name of `backends.table`.
        progress: called with (stage, done, total) while downloading and loading.
        options: attributes of the backend's options class and of `ImageOptions`.

    Raises:
        InvalidRequestError: there is no such backend or option; `.param` names it.
        MissingExtraError: the backend needs a package that is not installed.
        Glm4Error: the model cannot be found, fetched, read, or does not fit; see `errors`.
    """
    row, chosen, images = read_options(backend, options or {})
    variant = get_variant(model)
    if row.name == "local":
        return _open_local(resolve(model, progress=progress), variant, row, chosen, images, progress)
    backend_class = row.backend_class()
    row.check_options(chosen)
    path = resolve(model, weights=row.weights, progress=progress)
    files = read_text_files(path, variant=variant)
    processor = Processor.of(files, images)
    source = ModelFiles(
        name=model,
        tokenizer=processor.tokenizer,
        vocab_size=files.vocab_size or processor.tokenizer.size,
        context=files.context,
        path=path,
        variant=files.variant,
        stop_ids=processor.stop_ids,
        image=processor.image,
    )
    return OpenModel(backend_class.load(source, chosen, progress), processor)


def read_options(backend: str, options: Mapping[str, Any]) -> tuple[BackendRow, Any, ImageOptions]:
    """The backend, its options and those of pictures: what `open_model` checks before it looks for the model.

    Raises:
        InvalidRequestError: there is no such backend or option; `.param` names it.
        MissingExtraError: the backend needs a package that is not installed.
    """
    row = backend_row(backend)
    row.check_installed()
    given = dict(options)
    names = [field.name for field in fields(ImageOptions)]
    images = ImageOptions(**{name: given.pop(name) for name in names if name in given})
    return row, row.read_options(given), images


def _open_local(
    path: Path,
    variant: Variant | None,
    row: BackendRow,
    options: LocalOptions,
    images: ImageOptions,
    progress: Progress | None,
) -> OpenModel:
    """Load weights into this process: the packed form if an earlier run saved it, else the original."""
    cache = PackedCache(path)
    cached = cache.find(options.wanted, variant)
    if cached is not None:
        try:
            backend, processor = _load(cached, path, row, options, images, progress)
            return OpenModel(backend, processor, cached)
        except (CheckpointError, TokenizerError):  # damaged on disk: rebuild it from the original
            discard(cached.path)
    checkpoint = open_checkpoint(path, variant=variant)
    backend, processor = _load(checkpoint, path, row, options, images, progress)
    kept = cache.keep(checkpoint, processor.tokenizer, backend.model, backend.execution.dtype)
    return OpenModel(backend, processor, checkpoint, kept)


def _load(
    checkpoint: Checkpoint,
    source: Path,
    row: BackendRow,
    options: LocalOptions,
    images: ImageOptions,
    progress: Progress | None,
) -> tuple[LocalBackend, Processor]:
    try:
        processor = Processor.load(checkpoint, images)
        banned = processor.tokenizer.unnamed_ids(checkpoint.config.vocab_size)
        return row.backend_class().load(checkpoint, options, banned, progress, source), processor
    except BaseException:
        checkpoint.close()
        raise
