"""Damages a bundle again and again and runs what is left, each time in a process of its own.

`python -m tests.pipeline.workspace.hostile_bundles BUNDLE SCRATCH` prints a line of JSON a case. Needs what a
machine has that only runs engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvfold import LLM, RuntimeConfig, SamplingParams
from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, MANIFEST, TOKENIZER, TOKENIZER_CONFIG
from kvfold.runtime.engine.engine_config import SOURCES, fingerprint_of

ENGINE = "engine/cpu/engine.json"
FILES = (
    CONFIG,
    FOLD_PLAN,
    MANIFEST,
    TOKENIZER,
    TOKENIZER_CONFIG,
    ENGINE,
    "engine/cpu/model.onnx",
    "engine/cpu/model.onnx.data",
)
RANDOM_CASES = 200
SEED = 20
HOSTILE: tuple[Any, ...] = (
    *(None, -1, 0, 1.5, 1e308, 2**63, -(2**31), True, "", "x" * 5000, "NaN", [], {}, [[]] * 3),
    *("/etc/passwd", "../../../../etc/passwd", "{{ ''.__class__.__mro__ }}"),
    "{% for i in range(10**9) %}x{% endfor %}",
)
# What a case may take before the system ends it: seconds of CPU, seconds, and bytes of address space.
LIMITS = (20, 40, 6 << 30)
SAME, OTHER, TYPED = "the same tokens", "other tokens", "a typed error"


@dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
        file: that was damaged.
        damage: in words.
        agrees: the manifest was made to record the damaged file; of files that an engine is built from, for
            every other case, engine.json's fingerprint too.
        result: SAME, OTHER or TYPED; anything else is a defect.
    """

    file: str
    damage: str
    agrees: bool
    result: str


def main(bundle: str, scratch: str) -> None:
    """Print the outcomes of all cases."""
    source, expected = Path(bundle), reply(Path(bundle))
    for number, (file, agrees, damage) in enumerate(cases(source)):
        root = Path(scratch) / "bundle"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root, copy_function=os.link)
        content, words = damage((source / file).read_bytes())
        replace(root / file, content)
        if agrees:
            record(root, file)
        if agrees and file in SOURCES and number % 2:
            forge_fingerprint(root)
        print(json.dumps(asdict(Outcome(file, words, agrees, run_apart(root, expected)))), flush=True)


def cases(source: Path) -> Iterator[tuple[str, bool, Any]]:
    """File, whether the manifest is to agree, and a function from its bytes to damaged ones and words."""
    for file in (ENGINE, TOKENIZER_CONFIG):
        for keys in paths(json.loads((source / file).read_bytes())):
            for value in HOSTILE:
                yield file, True, partial(put, keys=keys, value=value)
    for case in range(RANDOM_CASES):
        dice = random.Random(f"{SEED} {case}")
        file = dice.choice(FILES)
        yield file, file != MANIFEST and dice.random() < 0.6, partial(damage, dice=dice)


def damage(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Content with one thing wrong, and what it is."""
    if content.startswith(b"{") and dice.random() < 0.75:
        keys = dice.choice(list(paths(json.loads(content))))
        kind = dice.random()
        if kind < 0.25:
            return remove(content, keys)
        return (
            put(content, (*keys[:-1], "unknown"), 1)
            if kind < 0.35
            else put(content, keys, dice.choice(HOSTILE))
        )
    changed, kind = bytearray(content), dice.random()
    if kind < 0.5:
        for _ in range(dice.choice([1, 1, 3, 20])):
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        return bytes(changed), "flipped bits"
    if kind < 0.7:
        return content[: dice.randrange(len(content))], "truncated"
    if kind < 0.8:
        return b"", "emptied"
    return (
        (dice.randbytes(len(content)), "noise")
        if kind < 0.9
        else (content + dice.randbytes(100), "appended to")
    )


Keys = tuple[str | int, ...]


def paths(value: object, keys: Keys = ()) -> Iterator[Keys]:
    """The keys that lead to everything in a JSON value, but the value itself."""
    if keys:
        yield keys
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:50]) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield from paths(inner, (*keys, key))


def put(content: bytes, keys: Keys, value: object) -> tuple[bytes, str]:
    """JSON with another value in one place."""
    whole = json.loads(content)
    holder = follow(whole, keys[:-1])
    if isinstance(holder, list) and not isinstance(keys[-1], int):
        holder.append(value)
    else:
        holder[keys[-1]] = value
    return json.dumps(whole).encode(), f"{keys} = {value!r:.40}"


def remove(content: bytes, keys: Keys) -> tuple[bytes, str]:
    """JSON without one of its values."""
    whole = json.loads(content)
    del follow(whole, keys[:-1])[keys[-1]]
    return json.dumps(whole).encode(), f"no {keys}"


def follow(value: Any, keys: Keys) -> Any:
    """What the keys lead to."""
    for key in keys:
        value = value[key]
    return value


def replace(path: Path, content: bytes) -> None:
    """Write a file anew, so that what it was linked to stays."""
    path.unlink()
    path.write_bytes(content)


def record(root: Path, name: str) -> None:
    """Make the manifest agree with a file."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    content, status = (root / name).read_bytes(), (root / name).stat()
    for stage in manifest["stages"].values():
        if name in stage["files"]:
            digest = hashlib.sha256(content).hexdigest()
            stage["files"][name] = {"size": len(content), "sha256": digest, "mtime_ns": status.st_mtime_ns}
    replace(root / MANIFEST, json.dumps(manifest).encode())


def forge_fingerprint(root: Path) -> None:
    """Make engine.json, and the manifest with it, agree with the files that the engine is built from."""
    digests = [hashlib.sha256((root / name).read_bytes()).hexdigest() for name in SOURCES]
    content, _ = put((root / ENGINE).read_bytes(), ("fingerprint",), fingerprint_of(digests))
    replace(root / ENGINE, content)
    record(root, ENGINE)


def reply(root: Path) -> tuple[int, ...]:
    """What a user gets of a bundle: loaded, prompted, chatted with, answered."""
    config = RuntimeConfig(kv_cache_bytes=4 << 20, max_num_batched_tokens=64, max_num_seqs=2, threads=1)
    llm = LLM.load(root, config)
    params = SamplingParams(max_tokens=4)
    replies = (
        llm.generate("a cab folded", params)[0],
        llm.chat([{"role": "user", "content": "a tab"}], params),
    )
    return tuple(token for reply in replies for token in reply.token_ids)


def run_apart(root: Path, expected: tuple[int, ...]) -> str:
    """`Outcome.result` of a bundle."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        cpu_seconds, seconds, address_space = LIMITS
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        signal.alarm(seconds)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.write(writing, result(root, expected).encode(errors="replace")[:400])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return said or f"ended by {os.waitstatus_to_exitcode(status)}"


def result(root: Path, expected: tuple[int, ...]) -> str:
    """The same, in the process that loads it."""
    try:
        return SAME if reply(root) == expected else OTHER
    except KvfoldError:
        return TYPED
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


if __name__ == "__main__":
    main(*sys.argv[1:])
