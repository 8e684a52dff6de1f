"""docs/serving.md names every option, route, status and metric, each once."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvfold.pipeline.commands.use.serve import command
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.connection import GuardedProtocol
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.guard.key_file import read_keys
from kvfold.runtime.server.http import BODY_SECONDS, MAX_BODY_BYTES
from kvfold.runtime.server.observe.collector import ServerCollector
from kvfold.runtime.server.observe.health_routes import health_routes
from kvfold.runtime.server.routes.api import api_routes
from kvfold.runtime.server.start.run_server import KEEP_ALIVE_SECONDS
from kvfold.runtime.server.start.server_settings import INTER_TOKEN_TARGET, MAX_NUM_SEQS
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.ui.ui_routes import ui_routes
from tests.deploy.deploy_files import serve_options
from tests.root import ROOT
from tests.runtime.server.puppet_llm import PuppetLLM

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SERVER = ROOT / "runtime" / "server"


def rows(title: str) -> list[list[str]]:
    """Cells of the lines of a section's first table."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = re.search(r"^\|[-:| ]+\|\n((?:\|.*\n)+)", section, re.M)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def make_state() -> ServerState:
    """A server without a model."""
    return ServerState("model", Gate(), AdmissionLimits(max_running=1, max_waiting=1))


def codes(cell: str) -> list[str]:
    """All that stands in a cell between backticks."""
    return cell.split("`")[1::2]


def code(cell: str) -> str:
    """The first of it."""
    return codes(cell)[0]


def test_every_option_stands_there_once() -> None:
    named = [code(name) for name, *_ in rows("Options")]
    assert sorted(named) == sorted(serve_options() - {"--help"})


def test_defaults_are_those_of_the_code() -> None:
    stated = {code(name): default for name, default, _ in rows("Options")}
    options = {parameter.opts[-1]: parameter.default for parameter in command.params}
    fixed = {name: value for name, value in options.items() if isinstance(value, int | float | str)}
    del fixed["recipe"]
    fixed |= {"--max-num-seqs": MAX_NUM_SEQS, "--inter-token-target": INTER_TOKEN_TARGET}
    assert {"--host", "--port", "--drain-seconds"} <= fixed.keys()
    for name, default in fixed.items():
        assert type(default)(code(stated[name])) == default


def test_every_route_stands_there_once_with_who_may_ask() -> None:
    state = make_state()
    routes = [*api_routes(state), *health_routes(state), *ui_routes()]
    named = [(route, access) for cell, access, _ in rows("Routes") for route in codes(cell)]
    assert sorted(named) == sorted((f"{route.method} {route.path}", route.access) for route in routes)


def test_every_status_stands_there_once() -> None:
    named = [int(status) for status, *_ in rows("What a status means")]
    assert named == sorted({*statuses_of_the_code(), 200})


def statuses_of_the_code() -> Iterator[int]:
    """Statuses that an HttpError or a Response is made with."""
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and re.search(r"HttpError|Response", ast.unparse(node.func)):
                given = [*node.args[:2], *(word.value for word in node.keywords if word.arg == "status")]
                inside = [part for each in given for part in ast.walk(each) if isinstance(part, ast.Constant)]
                yield from (part.value for part in inside if type(part.value) is int and part.value >= 100)


def test_limits_are_those_of_the_code() -> None:
    security = PAGE.split("\n## Security\n")[1].split("\n## ")[0]
    (line,) = re.findall(r"\*\*What a client may send\*\* is bounded: (.*?\n.*?\n)", security)
    assert re.findall(r"\d[\d,]* \w+", line.replace("\n", " ")) == [
        f"{GuardedProtocol.max_head_bytes // 1024} KiB",
        f"{MAX_BODY_BYTES // 2**20} MiB",
        f"{BODY_SECONDS:g} s",
        f"{GuardedProtocol.max_connections:,} connections",
        f"{KEEP_ALIVE_SECONDS} s",
        f"{GuardedProtocol.write_seconds:g} s",
    ]


def test_every_word_of_readiness_stands_there_once() -> None:
    source = inspect.getsource(ServerState.why_not_ready)
    words = re.findall(r'return f?"(\w+):', source)
    assert words
    assert sorted(code(word) for word, _ in rows("Start, readiness, end")) == sorted([*words, "ready"])


def test_every_metric_stands_there_once() -> None:
    registry = CollectorRegistry()
    state = make_state()
    state.loaded(PuppetLLM(), None)
    registry.register(ServerCollector(state))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    served = {(family.name, family.type) for family in families}
    named = set()
    for name, also, kind, _ in rows("Metrics"):
        own = code(name).removesuffix("_total")
        others = {own.replace("kvfold:", code(also))} if also else set()
        named |= {(each, kind) for each in {own, *others}}
    assert served == named


def test_the_page_s_file_of_keys_is_one(tmp_path: Path) -> None:
    example, nobody = re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)
    keys = json.loads(example)
    for number, entry in enumerate(keys["keys"]):
        entry["sha256"] = f"{number:064x}"
    keys["keys"].append(json.loads(nobody))
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    caller = read_keys(tmp_path / "keys.json").find("")
    assert caller is not None
    assert caller.roles == {"metrics"}
