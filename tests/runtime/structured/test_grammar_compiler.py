"""Grammars are compiled before anything is admitted: bad ones are refused, and bombs are too."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from kvfold.plugins.contract.errors import MissingExtraError, RequestError
from kvfold.runtime.structured.deep_stack import call_on_stack
from kvfold.runtime.structured.grammar_compiler import GrammarCompiler
from kvfold.runtime.structured.grammar_limits import MAX_BYTES, MAX_RULES
from kvfold.runtime.structured.grammar_spec import Choice, GrammarSpec, JsonSchema, Lark, Regex, ToolCalls
from kvfold.runtime.structured.tools import Tool
from tests.export.tiny_checkpoints import tiny_tokenizer
from tests.root import ROOT
from tests.runtime.structured.random_walks import tiny_bpe, tiny_compiler, vocab_size


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def chain(length: int, **beside: object) -> dict[str, Any]:
    """Definitions that each refer to the next."""
    links = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}, **beside} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "null"}}}


BOMBS: dict[str, GrammarSpec] = {
    "nested arrays": JsonSchema(nested(10_000)),
    "nested constant": JsonSchema({"const": json.loads("[" * 900 + "]" * 900)}),
    "five megabytes of enum": JsonSchema({"enum": [f"a value of the list {i:07}" for i in range(160_000)]}),
    "enum": JsonSchema({"enum": [f"value {i:07}" for i in range(15_000)]}),
    "circle": JsonSchema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "circle and sibling": JsonSchema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}}
    ),
    "chain": JsonSchema(chain(450)),
    "long chain": JsonSchema(chain(5_000)),
    "chain with siblings": JsonSchema(chain(400, minItems=1)),
    "doubling": JsonSchema(
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
            | {"d30": {}},
        }
    ),
    "wide": JsonSchema({"properties": {f"p{i}": {} for i in range(20_000)}}),
    "wide but allowed": JsonSchema({"prefixItems": [{"properties": {f"p{i}": {} for i in range(200)}}] * 30}),
    "wide and required": JsonSchema(
        {"properties": {f"p{i}": {} for i in range(4_000)}, "required": [f"p{i}" for i in range(4_000)]}
    ),
    "counts": JsonSchema({"minItems": 10**9, "items": {"minLength": 10**6, "maxLength": 10**9}}),
    "regex": Regex("(a+)+"),
    "regex repeats": Regex("((a{1,1000}){1,1000}){1,1000}"),
    "regex huge repeat": Regex("(((a+)+)+){99999999}"),
    "regex brackets": Regex("(" * 1_900 + "a" + ")" * 1_900),
    "regex alternatives": Regex("|".join(f"(.*{i}.*)" for i in range(1_500))),
    "pattern": JsonSchema({"type": "string", "pattern": "^(a+)+$", "maxLength": 10**6}),
    "lark chain": Lark("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(1_900)) + '\nr1900: "a"'),
    "lark terminals": Lark(
        "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"'
    ),
    "lark rules": Lark(
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"'
    ),
    "lark brackets": Lark("start: " + "(" * 1_900 + '"a"' + ")" * 1_900),
    "lark deep rules": Lark(
        "start: r0\n"
        + "\n".join(f"r{i}: " + "(" * 24 + f"r{i + 1}" + "?)" * 24 for i in range(75))
        + '\nr75: "a"'
    ),
    "lark too long": Lark("start: " + "// " * MAX_BYTES),
    "lark too many rules": Lark("\n".join(f'r{i}: "a"' for i in range(MAX_RULES + 1))),
    "choice": Choice(tuple(f"choice {i}" for i in range(100_000))),
    "tools": ToolCalls(tuple(Tool(f"tool{i}", parameters=nested(20)) for i in range(300))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_compiled_or_refused_within_a_second(name: str) -> None:
    start = time.process_time()
    try:
        constraint = tiny_compiler().compile(BOMBS[name]).constraint()
        constraint.fill_mask(constraint._first.copy())
    except RequestError as error:
        assert len(str(error)) < 500
    assert time.process_time() - start < 1


BAD: dict[str, tuple[GrammarSpec, str]] = {
    "regex": (Regex("("), "unclosed group"),
    "half an escape": (Regex("a\\"), "half an escape"),
    "look-around": (Regex("(?=a)b"), "look-around, including look-ahead and look-behind, is not supported"),
    "impossible regex": (Regex("[^\\x00-\\U0010FFFF]"), "nothing satisfies it"),
    "surrogate": (Regex("\ud800"), "no Unicode text"),
    "no choice": (Choice(()), "the choice has no texts"),
    "choice of a surrogate": (Choice(("a\udfff",)), "no Unicode text"),
    "unknown rule": (Lark("start: foo"), 'unknown name: "foo"'),
    "no start": (Lark('a: "b"'), "no start rule found"),
    "unknown token": (Lark("start: <nobody>"), "nobody"),
    "broken grammar": (Lark("start: ((("), "Expected token"),
    "no grammar": (Lark(""), "no start rule found"),
    "list of grammars": (Lark('{"grammars": [{"json_schema": {}}]}'), "expecting rule"),
    "no tools": (ToolCalls(()), "there are no tools to call"),
    "tool's schema": (
        ToolCalls((Tool("a"), Tool("b", parameters={"properties": {"x": {"not": {}}}}, strict=True))),
        "tool 'b' cannot be enforced: failed to compile JSON schema: Unimplemented keys: [\"not\"] at "
        "properties.x",
    ),
    "tool's deep schema": (
        ToolCalls((Tool("deep", parameters=nested(200)),)),
        "tool 'deep': the schema is nested",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_grammar_is_a_sentence_that_says_what_to_do(name: str) -> None:
    spec, sentence = BAD[name]
    with pytest.raises(RequestError) as error:
        tiny_compiler().compile(spec)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_bad_grammars_are_refused_in_less_than_twenty_milliseconds() -> None:
    """CPU time, the best of three: the machine is shared."""
    tiny_compiler()
    for spec, _ in BAD.values():
        times = []
        for _ in range(3):
            start = time.process_time()
            with pytest.raises(RequestError):
                tiny_compiler().compile(spec)
            times.append(time.process_time() - start)
        assert min(times) < 0.02, spec


def test_a_tokenizer_that_llguidance_cannot_read_is_refused() -> None:
    with pytest.raises(RequestError, match=r"tokenizer cannot be held to a grammar: .*decoder"):
        GrammarCompiler(tiny_tokenizer().to_str(), 200, [96])


def test_an_end_that_is_no_token_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot be held to a grammar"):
        GrammarCompiler(tiny_bpe().to_str(), vocab_size(), [vocab_size() + 7])


def test_without_llguidance_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from kvfold.runtime.structured.grammar_compiler import GrammarCompiler\n"
        "try: GrammarCompiler('{}', 1, [])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(MissingExtraError.__name__) and "pip install 'kvfold[serve]'" in ran.stdout


def test_a_call_on_a_stack_of_its_own_gives_what_it_gives() -> None:
    before = threading.stack_size()
    assert call_on_stack(32 << 20, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_on_stack(32 << 20, lambda: 1 // 0)
    assert threading.stack_size() == before
