"""build: what `serve run` is given, an application of Ray Serve."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from typing import Any

from kvfold.plugins.contract.errors import MissingExtraError
from kvfold.runtime.cluster.cluster_settings import ClusterSettings, read_cluster_settings

# A replica refuses by itself what is too much (429, with a time); Ray never does before it.
MAX_ONGOING = 1024
STATS_SECONDS = 1.0
HEALTH_SECONDS = 5.0
# For what comes after the last reply.
SHUTDOWN_SECONDS = 15.0
RELAY_CPUS = 0.5


def build(args: dict[str, Any]) -> Any:
    """An application of engines, and of relays in front of them.

    Args:
        args: names and values of ClusterSettings, as texts.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        RequestError: a setting is unknown or out of range.
    """
    from kvfold.runtime.cluster.served_replica import load_bundle

    require_ray()
    return build_application(read_cluster_settings(args), load_bundle)


def build_application(settings: ClusterSettings, load: Any) -> Any:
    """The same of settings, and a function of them that reads the model on a replica's machine."""
    from ray import serve

    from kvfold.runtime.cluster.deployments import Engine, Front

    if not settings.relays:
        engines = serve.deployment(serve.ingress()(Engine), **engine_options(settings))
        return engines.bind(settings, load, None)
    relay_key = settings.relay_key or secrets.token_hex(16)
    engines = serve.deployment(Engine, **engine_options(settings))
    relays = serve.deployment(
        serve.ingress()(Front),
        num_replicas=settings.relays,
        max_ongoing_requests=MAX_ONGOING,
        graceful_shutdown_timeout_s=settings.drain_seconds + SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": RELAY_CPUS},
    )
    return relays.bind(engines.bind(settings, load, relay_key), relay_key, settings.patience)


def require_ray() -> None:
    """Refuse to begin without Ray Serve; raises MissingExtraError."""
    missing = [name for name in ("ray", "aiohttp", "uvicorn") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{', '.join(missing)} not installed, which a cluster needs: run "
            "`pip install 'kvfold[serve,ray]'` on every machine"
        )


def engine_options(settings: ClusterSettings) -> dict[str, Any]:
    """What Ray is told of the engines' deployment."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

    from kvfold.runtime.cluster.scale_by_tokens import ScaleByTokens
    from kvfold.runtime.cluster.session_router import ROUTER
    from kvfold.runtime.server.start.server_settings import MAX_NUM_SEQS

    options: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        kind = f"{ScaleByTokens.__module__}:{ScaleByTokens.__name__}"
        limits = {
            "waiting_tokens": settings.waiting_tokens,
            "replies": settings.max_num_seqs or MAX_NUM_SEQS,
        }
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=settings.max_replicas,
                policy=AutoscalingPolicy(policy_function=kind, policy_kwargs=limits),
            )
        }
    # Where HAProxy stands in front of the engines it places requests itself, and Ray refuses a router.
    if settings.relays or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        options["request_router_config"] = RequestRouterConfig(
            request_router_class=ROUTER, request_routing_stats_period_s=STATS_SECONDS
        )
    return {
        **options,
        "name": "Engine",
        "max_ongoing_requests": MAX_ONGOING,
        "health_check_period_s": HEALTH_SECONDS,
        "graceful_shutdown_timeout_s": settings.drain_seconds + SHUTDOWN_SECONDS,
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    }
