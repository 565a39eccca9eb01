"""`glm4 serve`: an HTTP server with OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.agent_options import AgentOptions
from glm4.cli.parameters import Argument, Option, UsageError
from glm4.cli.ray_options import PANEL as RAY
from glm4.cli.ray_options import RayOptions

if TYPE_CHECKING:
    from glm4.server.config import ModelSpec, ServerConfig

EXAMPLES = """
glm4 serve
glm4 serve -m glm-4-9b-chat --dtype int4 --context 32768
glm4 serve -m glm-4-9b-chat --lora poems=./poems-adapter --served-model-name glm-4
glm4 serve -m coder=starter-large -m tiny=smoke
glm4 serve --host 0.0.0.0 --api-key-file keys.txt
glm4 serve -m glm-4-9b-chat --ray --replicas 2
"""

_ACCESS, _LIMITS, _LOG = "Access", "Limits", "Logging and metrics"


@dataclass(frozen=True)
class ServingOptions:
    """How to serve; the names are those of `ServerConfig`'s fields."""

    host: Annotated[str, Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")] = 8000
    store_path: Annotated[
        Path | None,
        Option("--store", metavar="FILE", help="Keep responses (/v1/responses) in this SQLite file; else in memory."),
    ] = None
    insecure: Annotated[bool, Option("--insecure", panel=_ACCESS, help="Let others in without a key.")] = False
    allow_adapter_loading: Annotated[
        bool,
        Option(
            "--allow-adapter-loading", panel=_ACCESS, help="Let clients load LoRA adapters from this machine's folders."
        ),
    ] = False
    parse_special: Annotated[
        bool,
        Option(
            "--parse-special", panel=_ACCESS, help="Read <|user|> and the like in raw prompts (not chats) as tokens."
        ),
    ] = False
    max_queue: Annotated[
        int, Option(min=0, metavar="N", panel=_LIMITS, help="Requests that may wait; more get 429.")
    ] = 256
    queue_timeout: Annotated[
        float, Option(min=0.1, metavar="SECONDS", panel=_LIMITS, help="Longest wait for a place.")
    ] = 300.0
    request_timeout: Annotated[
        float | None, Option(min=0.1, metavar="SECONDS", panel=_LIMITS, help="Longest answer.")
    ] = None
    max_connections: Annotated[
        int, Option(min=1, max=1_000_000, metavar="N", panel=_LIMITS, help="Open connections; idle ones give way.")
    ] = 1000
    shutdown_timeout: Annotated[
        float, Option(min=1, max=86400, metavar="SECONDS", panel=_LIMITS, help="Time to finish after SIGTERM.")
    ] = 30.0
    log_prompts: Annotated[bool, Option("--log-prompts", panel=_LOG, help="Write prompts into the log.")] = False
    metrics_prefix: Annotated[
        str, Option(metavar="WORD", panel=_LOG, help="Prefix of metric names; vllm fits its dashboards.")
    ] = "glm4"


def serve(
    first: Annotated[str | None, Argument(metavar="MODEL", help="What to serve; the same as a first -m.")] = None,
    *,
    model: Annotated[
        list[str] | None,
        Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="What to serve, as in `glm4 chat -m`; NAME= is what clients call it. May be repeated. "
            "The default is GLM4_MODEL, else starter.",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Further names of the first model; * answers to any. May be repeated."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        Option(metavar="NAME=FOLDER", help="A LoRA adapter of the first model (PEFT's format). May be repeated."),
    ] = None,
    engine: options.EngineOptions,
    max_num_seqs: Annotated[
        int, Option(min=1, max=4096, metavar="N", panel=options.ENGINE, help="Requests answered at once.")
    ] = 64,
    kv_memory: Annotated[
        float | None,
        Option(
            min=0.001,
            max=1e6,
            metavar="GB",
            panel=options.ENGINE,
            help="Memory for the KV cache. The default is what is needed, up to 60 % of what is free.",
        ),
    ] = None,
    picture_memory: Annotated[
        float | None,
        Option(
            min=0,
            max=1e6,
            metavar="GB",
            panel=options.ENGINE,
            help="Memory for what the model has seen in pictures, so that it need not look again. The default is 0.27.",
        ),
    ] = None,
    allow_many_images: options.AllowManyImages = False,
    media_domains: options.MediaDomains = None,
    serving: ServingOptions,
    preload: Annotated[bool, Option("--preload", help="Open the port only once the models are loaded.")] = False,
    api_key: Annotated[
        list[str] | None,
        Option(
            envvar="GLM4_API_KEY",
            metavar="KEY",
            panel=_ACCESS,
            help="A key that clients must send. Other users of this machine can see it; a file is safer.",
        ),
    ] = None,
    api_key_file: Annotated[Path | None, Option(metavar="FILE", panel=_ACCESS, help="Keys, one per line.")] = None,
    allowed_host: Annotated[
        list[str] | None, Option(metavar="NAME", panel=_ACCESS, help="Accept this Host header besides localhost.")
    ] = None,
    allowed_origin: Annotated[
        list[str] | None, Option(metavar="ORIGIN", panel=_ACCESS, help="Let web pages of this origin call (CORS).")
    ] = None,
    max_memory: Annotated[
        float | None,
        Option(
            min=0.1,
            max=1e6,
            metavar="GB",
            panel=_LIMITS,
            help="Memory of the whole server. The default is what the machine or container has.",
        ),
    ] = None,
    max_body_mb: Annotated[int, Option(min=1, metavar="MB", panel=_LIMITS, help="Longest request body.")] = 48,
    store_max_mb: Annotated[int, Option(min=1, metavar="MB", panel=_LIMITS, help="Responses kept, in all.")] = 256,
    store_max_days: Annotated[
        float, Option(min=0.001, metavar="DAYS", panel=_LIMITS, help="How long a response is kept unused.")
    ] = 30.0,
    log_format: Annotated[
        str, Option(metavar="FORMAT", panel=_LOG, help="text or json (one object per line).")
    ] = "text",
    log_level: Annotated[str, Option(metavar="LEVEL", panel=_LOG, help="debug, info, warning or error.")] = "info",
    agent: AgentOptions,
    ray: RayOptions,
    replicas: Annotated[
        int | None,
        Option(
            min=1, max=4096, metavar="N", panel=RAY, help="Servers behind one port; otherwise one per GPU, or per node."
        ),
    ] = None,
) -> None:
    """Serve models over HTTP, with OpenAI's and Anthropic's APIs.

    The port opens at once and the models load in the background: /health says that the server lives, /ready that it
    can answer. Only this machine can reach it unless --host says otherwise, and then a key is needed.
    """
    from glm4.cli.server_logging import set_up_logging

    ray.check(replicas=replicas)
    settings: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "allow_many_images": allow_many_images,
        "media_domains": media_domains,
    }
    for name, gigabytes in (("kv_cache_memory", kv_memory), ("picture_cache_memory", picture_memory)):
        if gigabytes is not None:
            settings[name] = int(gigabytes * 1e9)
    settings |= engine.for_llm()
    options.import_engine(**settings)
    settings |= options.adapter_options(settings, len(lora or []))
    models = [*([first] if first else []), *(model or [])]
    # The variable does not hold a list: a folder's name may contain spaces.
    specs = _specs(models or [os.environ.get("GLM4_MODEL") or "starter"], served_model_name or [], lora or [], settings)
    from glm4.server.config import ServerConfig

    config = ServerConfig(
        models=specs,
        **asdict(serving),
        api_keys=_keys(api_key or [], api_key_file),
        allowed_hosts=tuple(allowed_host or ()),
        allowed_origins=tuple(allowed_origin or ()),
        max_body_bytes=max_body_mb << 20,
        max_memory=None if max_memory is None else int(max_memory * 1e9),
        store_max_bytes=store_max_mb << 20,
        store_max_age=store_max_days * 86400,
        agent=agent.config(),
    )
    set_up_logging(log_format, log_level)
    if ray.ray is not None:
        _run_on_ray(config, ray, replicas)
    else:
        _run(config, preload=preload)


def _run_on_ray(config: ServerConfig, ray: RayOptions, replicas: int | None) -> None:
    from glm4.batch.ray.cluster import Shares
    from glm4.cli.console import notice
    from glm4.server.ray.run import check, run_on_ray

    def ready(shares: Shares, host: str, port: int) -> None:
        each = f"{shares.cpus} CPUs and {shares.gpus:g} GPUs each"
        notice(f"{shares.count} replicas with {each}; Ctrl-C finishes what runs and stops")
        notice(f"serving {', '.join(spec.names[0] for spec in config.models)} at http://{_shown(host)}:{port}/v1")

    check(config)
    notice(f"starting replicas on Ray ({ray.ray})")
    run_on_ray(config, str(ray.ray), ray.wanted(replicas), ready)


def _run(config: ServerConfig, *, preload: bool) -> None:
    from glm4.cli.console import notice
    from glm4.server.app import create_app
    from glm4.server.run import bind, run

    load = _preloaded(config) if preload else None
    app = create_app(config, load)
    listener = bind(config)
    address, port = listener.getsockname()[:2]
    shown = _shown(address)
    notice(f"serving {', '.join(spec.names[0] for spec in config.models)} at http://{shown}:{port}/v1")
    notice(f"documentation: http://{shown}:{port}/docs   stop with Ctrl-C")
    run(app, config, listener)


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _preloaded(config: ServerConfig) -> Any:
    """A loader that returns what was loaded before the port opened, with progress on the terminal."""
    loaded = {spec.names: options.load_llm(spec.source, **spec.options) for spec in config.models}
    return lambda spec, progress: loaded[spec.names]


def _specs(models: list[str], names: list[str], adapters: list[str], settings: dict[str, Any]) -> tuple[ModelSpec, ...]:
    from glm4.server.config import ModelSpec

    specs = []
    for index, text in enumerate(models):
        name, separator, source = text.partition("=")
        if not separator or "/" in name:
            name, source = "", text
        own = [name or Path(source).name or source]
        if index == 0:
            own = [*names, *own] if names and not name else [*own, *names]
        specs.append(
            ModelSpec(
                source=source,
                names=tuple(dict.fromkeys(own)),
                options=settings,
                adapters=dict(_pair(adapter) for adapter in adapters) if index == 0 else {},
            )
        )
    return tuple(specs)


def _pair(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (separator and name and folder):
        raise UsageError(f"--lora takes NAME=FOLDER, not {text!r}")
    return name, Path(folder)


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    keys = [key for text in given for key in text.split(",") if key]
    if given and not keys:
        raise UsageError("--api-key is empty; without it the server is open to everybody on this machine")
    if file is not None:
        from glm4.cli.console import STREAM, read_stdin
        from glm4.system.text_encoding import TextEncodingError, read_text

        try:
            lines = (read_stdin() if os.fspath(file) == STREAM else read_text(file)).splitlines()
            mode = 0 if os.fspath(file) == STREAM else file.stat().st_mode
        except OSError as error:
            raise UsageError(f"--api-key-file {os.fspath(file)} cannot be read: {error}") from None
        except TextEncodingError as error:
            raise UsageError(f"--api-key-file {os.fspath(file)} {error}") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"--api-key-file {os.fspath(file)} has no key in it")
        if os.name == "posix" and mode & 0o077:
            from glm4.cli.console import notice

            notice(f"{file} can be read by other users of this machine; close it to them: chmod 600 {file}")
        keys += found
    return tuple(dict.fromkeys(keys))
