"""`glm4 serve`: an HTTP server with OpenAI's and Anthropic's APIs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.agent_options import AgentOptions
from glm4.cli.parameters import Argument, Option, UsageError
from glm4.cli.ray_options import PANEL as RAY
from glm4.cli.ray_options import RayOptions
from glm4.cli.serving_options import AccessOptions, LimitOptions, LogOptions, ServedModels

if TYPE_CHECKING:
    from glm4.server.config import ServerConfig

EXAMPLES = """
glm4 serve
glm4 serve -m glm-4-9b-chat --dtype int4 --context 32768
glm4 serve -m glm-4-9b-chat --lora poems=./poems-adapter --served-model-name glm-4
glm4 serve -m coder=starter-large -m tiny=smoke
glm4 serve --ui --host 0.0.0.0 --api-key-file keys.txt
glm4 serve -m glm-4-9b-chat --ray --replicas 2
"""


def serve(
    first: Annotated[str | None, Argument(metavar="MODEL", help="What to serve; the same as a first -m.")] = None,
    *,
    models: ServedModels,
    engine: options.EngineOptions,
    access: AccessOptions,
    port: Annotated[int, Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")] = 8000,
    ui: Annotated[bool, Option("--ui", help="Serve the web page, too, at /ui; see `glm4 ui`.")] = False,
    limits: LimitOptions,
    preload: Annotated[bool, Option("--preload", help="Open the port only once the models are loaded.")] = False,
    log: LogOptions,
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
    can answer. Only this machine can reach it unless --host says otherwise, and then a key is needed. With --ui people
    use it with a browser, each with a key.
    """
    ray.check(replicas=replicas)
    specs = models.specs(first, engine)
    from glm4.server.config import ServerConfig

    settings = access.settings() | limits.settings() | log.settings()
    config = ServerConfig(models=specs, port=port, **settings, agent=agent.config(), ui=ui)
    if config.training is not None and not ui:
        raise UsageError("--training is shown in the web page; add --ui")
    log.set_up()
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
    if config.ui:
        notice(f"page: http://{shown}:{port}/ui")
    notice(f"documentation: http://{shown}:{port}/docs   stop with Ctrl-C")
    run(app, config, listener)


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _preloaded(config: ServerConfig) -> Any:
    """A loader that returns what was loaded before the port opened, with progress on the terminal."""
    loaded = {spec.names: options.load_llm(spec.source, **spec.options) for spec in config.models}
    return lambda spec, progress: loaded[spec.names]
