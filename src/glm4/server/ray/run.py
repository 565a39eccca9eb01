"""`run_on_ray`: replicas of a server on a cluster, until a signal ends them."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

from glm4.batch.ray.cluster import Shares, Wanted, check_ray, cluster, everywhere, live_nodes, quiet, share_out
from glm4.errors import ClusterError, InvalidRequestError
from glm4.server.config import ServerConfig
from glm4.server.ray.replica import Replica
from glm4.server.run import bind

FEATURE = "glm4 serve --ray"
APP_NAME = "glm4"
# Sessions, by the header x-session-id, stay with a replica, which has their prompts in its prefix cache.
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_LIGHT_REQUESTS = 64  # /health, /metrics and so on, beside those that the server's own queue counts
_ATTEMPTS = 2
_CLOSING_SECONDS = 15.0


def check(config: ServerConfig) -> None:
    """Refuse what replicas cannot share.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        InvalidRequestError: an option has no meaning with several processes; `.param` names it.
    """
    if config.store_path is not None:
        raise InvalidRequestError(
            "--store does not work with --ray: each replica would have responses of its own, so none are kept;"
            " leave it out, and clients send whole conversations",
            param="store",
        )
    if config.allow_adapter_loading:
        raise InvalidRequestError(
            "--allow-adapter-loading does not work with --ray: a request reaches one replica only; load adapters with"
            " --lora",
            param="allow_adapter_loading",
        )
    if config.ui:
        raise InvalidRequestError(
            "--ui does not work with --ray: the page's sessions and turns are in one replica, and its requests reach"
            " another; serve it without --ray",
            param="ui",
        )
    if config.agent.tools or config.agent.sessions is not None:
        option = "tools" if config.agent.tools else "sessions"
        raise InvalidRequestError(
            f"--{option} does not work with --ray: a turn of the assistant is in one replica, and its approvals and"
            " followers reach another; serve it without --ray",
            param=option,
        )
    check_ray(FEATURE, "ray.serve")


def run_on_ray(
    config: ServerConfig, address: str, wanted: Wanted, on_ready: Callable[[Shares, str, int], None]
) -> None:
    """Serve until SIGTERM or SIGINT; running requests get `shutdown_timeout` seconds to finish.

    Args:
        address: of the cluster; see `cluster`.
        wanted: how many replicas, and what each gets.
        on_ready: called with address and port once all replicas are ready.

    Raises:
        ClusterError: no cluster answers, it serves something already, or the models cannot be loaded there.
        InvalidRequestError: the cluster has not enough, or the port cannot be used.
    """
    with cluster(address):
        from ray import serve

        _check_place()
        shares = share_out(wanted, config.models[0].options, live_nodes())
        with contextlib.closing(bind(config)) as listener:
            host, port = listener.getsockname()[:2]
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        try:
            _on_signals(_interrupt)
            _deploy(_portable(config, shares), shares)
            stopped = threading.Event()

            def stop(number: int, frame: FrameType | None) -> None:
                _on_signals(_interrupt)  # a second one does not wait for running requests
                stopped.set()

            _on_signals(stop)
            on_ready(shares, host, port)
            stopped.wait()
            _drain(config.shutdown_timeout)
        finally:
            with quiet():
                serve.shutdown()


def _check_place() -> None:
    """Ray Serve's proxy runs on the head node, and there is one Ray Serve per cluster."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in ray.nodes()):
        raise ClusterError("glm4 serve --ray listens on the cluster's head node; run it there")
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise ClusterError("this cluster runs Ray Serve already; stop it (`serve shutdown`), or take another cluster")


def _portable(config: ServerConfig, shares: Shares) -> ServerConfig:
    """The configuration as replicas need it, whatever their working directory."""
    models = tuple(
        replace(
            spec,
            source=everywhere(spec.source),
            options=shares.llm_options(spec.options),
            adapters={name: path.resolve() for name, path in spec.adapters.items()},
        )
        for spec in config.models
    )
    return replace(config, models=models, keep_responses=False)


def _deploy(config: ServerConfig, shares: Shares) -> None:
    """Start the replicas and wait until they are ready."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    at_once = sum(int(spec.options.get("max_num_seqs", 0)) for spec in config.models)
    deployment = serve.deployment(
        name="server",
        num_replicas=shares.count,
        ray_actor_options={"num_cpus": shares.cpus, "num_gpus": shares.gpus},
        max_ongoing_requests=at_once + config.max_queue + _LIGHT_REQUESTS,
        graceful_shutdown_timeout_s=config.shutdown_timeout,
        max_constructor_retry_count=_ATTEMPTS,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(serve.ingress()(Replica))
    try:
        serve.run(deployment.bind(config), name=APP_NAME, route_prefix="/")
    except RuntimeError:
        raise ClusterError(f"the replicas cannot start: {_problem()}") from None


def _problem() -> str:
    """What Ray Serve says about the deployment that failed: the last line of its message is the error itself."""
    from ray import serve

    app = serve.status().applications.get(APP_NAME)
    texts = [] if app is None else [*(one.message for one in app.deployments.values()), app.message]
    lines = [line.strip() for text in texts for line in text.splitlines() if "Error: " in line]
    return lines[-1] if lines else " ".join(texts) or "Ray Serve's log says why"


def _drain(seconds: float) -> None:
    """Admit no more requests and wait for those that run."""
    from ray import serve

    serve.delete(APP_NAME, _blocking=False)
    deadline = time.monotonic() + seconds + _CLOSING_SECONDS
    while APP_NAME in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.1)


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
