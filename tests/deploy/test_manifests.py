"""The Kubernetes manifests and the Dockerfile: what they must share with the code and with each other."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.observe.health_routes import health_routes
from kvfold.runtime.server.start.run_server import FLUSH_SECONDS
from kvfold.runtime.server.start.server_settings import ServerSettings
from kvfold.runtime.server.state import ServerState
from tests.deploy.deploy_files import MANIFESTS, docker_steps, manifests, serve_arguments, serve_options

OBJECTS = manifests()
PODS = OBJECTS["Deployment"]["spec"]["template"]
(CONTAINER,) = PODS["spec"]["containers"]
STEPS = docker_steps()
COMMAND_LINES = {
    "deployment": CONTAINER["args"],
    "Dockerfile": next(json.loads(rest) for word, rest in STEPS if word == "CMD"),
}
PROBES = [name for name in CONTAINER if name.endswith("Probe")]


def access_of_routes() -> dict[str, str]:
    """Who may ask for each route of health."""
    state = ServerState("model", Gate(), AdmissionLimits(max_running=1, max_waiting=1))
    return {route.path: route.access for route in health_routes(state)}


def docker_user() -> str:
    """`uid:gid` of the last stage."""
    return [rest for word, rest in STEPS if word == "USER"][-1]


def test_kustomize_names_every_file() -> None:
    listed = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert set(listed["resources"]) == {path.name for path in MANIFESTS.iterdir()} - {"kustomization.yaml"}
    assert [image["name"] for image in listed["images"]] == [CONTAINER["image"]]
    assert OBJECTS.keys() == {"Deployment", "Service", "PodDisruptionBudget", "PodMonitor"}


def test_every_selector_finds_the_pods() -> None:
    labels = PODS["metadata"]["labels"].items()
    selectors = [OBJECTS["Service"]["spec"]["selector"]]
    selectors += [
        each["spec"]["selector"]["matchLabels"] for each in OBJECTS.values() if each["kind"] != "Service"
    ]
    assert len(selectors) == len(OBJECTS)
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert PODS["metadata"]["labels"]["llm-d.ai/engine-type"] == "kvfold"


@pytest.mark.parametrize("words", COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_a_command_line_is_one_that_kvfold_takes(words: list[str]) -> None:
    arguments = serve_arguments(words)
    assert arguments.keys() <= serve_options() | {"bundle"}
    assert {"--keys", "--host"} <= arguments.keys(), "what other machines reach needs keys"


def test_the_port_is_the_server_s_everywhere() -> None:
    (port,) = CONTAINER["ports"]
    health = next(rest for word, rest in STEPS if word == "HEALTHCHECK")
    exposed = [int(rest) for word, rest in STEPS if word == "EXPOSE"]
    assert {port["containerPort"], *exposed} == {ServerSettings().port}
    assert serve_arguments(CONTAINER["args"])["--port"] == str(ServerSettings().port)
    assert re.findall(r"127\.0\.0\.1:(\d+)", health) == [str(ServerSettings().port)]
    named = [*OBJECTS["Service"]["spec"]["ports"], *OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"]]
    assert [each.get("targetPort", each.get("port")) for each in named] == [port["name"]] * len(named)


def test_probes_ask_for_what_the_keys_of_the_page_let_them() -> None:
    """Kubernetes and Docker have no safe place for the key of a probe."""
    access = access_of_routes()
    asked = {CONTAINER[probe]["httpGet"]["path"] for probe in PROBES}
    asked |= set(re.findall(r":\d+(/[/\w]+)", next(rest for word, rest in STEPS if word == "HEALTHCHECK")))
    assert asked == {"/health/live", "/health/ready"}
    assert (access["/health/live"], access["/health/ready"]) == ("anyone", "probe")
    assert {CONTAINER[probe]["httpGet"]["port"] for probe in PROBES} == {CONTAINER["ports"][0]["name"]}


def test_prometheus_has_a_key_for_the_metrics() -> None:
    (endpoint,) = OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert access_of_routes()[endpoint["path"]] == "metrics"
    assert endpoint["authorization"]["credentials"].keys() == {"name", "key"}


def test_a_pod_has_time_to_drain() -> None:
    drain = float(serve_arguments(CONTAINER["args"])["--drain-seconds"])
    leave = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert PODS["spec"]["terminationGracePeriodSeconds"] > leave + drain + FLUSH_SECONDS
    # A probe that fails meanwhile must not end it earlier.
    live = CONTAINER["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= leave + drain


def test_the_user_is_the_image_s_and_may_write_nothing_but_tmp() -> None:
    pod, own = PODS["spec"]["securityContext"], CONTAINER["securityContext"]
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == docker_user()
    created = " ".join(rest for word, rest in STEPS if word == "RUN")
    assert set(re.findall(r"--[ug]id (\d+)", created)) == set(docker_user().split(":"))
    assert pod["runAsNonRoot"] and own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    writable = [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]


def test_what_the_command_reads_is_mounted() -> None:
    mounts: dict[str, Any] = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    arguments = serve_arguments(CONTAINER["args"])
    assert arguments["bundle"] in mounts
    assert str(PurePosixPath(arguments["--keys"]).parent) in mounts
    assert set(mounts.values()) == {volume["name"] for volume in PODS["spec"]["volumes"]}
