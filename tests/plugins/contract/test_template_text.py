"""Strings that know who wrote them: a template does to them what it does to any, and the marks come along."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvfold.plugins.contract.chat_template import render_chat
from kvfold.plugins.contract.template_text import TemplateText, join_texts, written_by_template
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

# A template's characters are capitals here, a message's are not: so each text says what its marks must be.
TEXTS = st.text("ABab \n%", max_size=12)
# What a template does to a text, with another one.
OPERATIONS: dict[str, Any] = {
    "add": lambda text, other: text + other,
    "add behind": lambda text, other: "plain" + text,
    "repeat": lambda text, other: text * 2 + 2 * other,
    "part": lambda text, other: text[1:-1] + text[::-1] + text[:1],
    "character": lambda text, other: "".join([]) if not text else text[0] + text[-1],
    "characters": lambda text, other: join_texts(text),
    "join": lambda text, other: text.join([other, text, other]),
    "replace": lambda text, other: text.replace(other[:1] or "A", other),
    "replace once": lambda text, other: text.replace(other[:2] or "a", "x", 1),
    "strip": lambda text, other: text.strip() + text.lstrip(other) + text.rstrip("aA"),
    "affixes": lambda text, other: text.removeprefix(other[:2]) + text.removesuffix(other[-2:]),
    "split": lambda text, other: other.join(text.split(other[:2] or None)),
    "split at most": lambda text, other: other.join(text.split(None, 1) + text.rsplit(other[:1] or None, 1)),
    "lines": lambda text, other: other.join(text.splitlines() + text.splitlines(keepends=True)),
    "partition": lambda text, other: other.join(text.partition("a") + text.rpartition(" A")),
}


def marked(text: str) -> TemplateText:
    """A text of which a template wrote the capitals."""
    return TemplateText(text, bytes(letter.isupper() for letter in text))


@pytest.mark.parametrize("name", OPERATIONS)
@given(text=TEXTS, other=TEXTS)
def test_a_text_is_a_str_that_keeps_its_marks(name: str, text: str, other: str) -> None:
    result = OPERATIONS[name](marked(text), marked(other))
    assert result == OPERATIONS[name](text, other)
    assert written_by_template(result) == bytes(letter.isupper() for letter in result)


@given(text=TEXTS)
def test_letters_keep_their_marks_in_another_case(text: str) -> None:
    for change in (str.upper, str.lower, str.title, str.capitalize):
        result = getattr(marked(text), change.__name__)()
        assert result == change(text)
        assert written_by_template(result) == written_by_template(marked(text))
    assert written_by_template(TemplateText("ß", b"\1").upper()) == b"\0\0"  # nobody knows which is whose


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("A%sB", "x", "A.B"),
        ("A%sB%%%dC", ("x", 3), "A.B%.C"),
        ("%(k)sA", {"k": "x"}, ".A"),
        ("A", (), "A"),
        ("A%*d", (3, 1), "...."),
    ],
)
def test_fields_are_filled(form: str, values: Any, expected: str) -> None:
    result = TemplateText(form, b"\1" * len(form)) % values
    assert result == form % values
    assert written_by_template(result) == bytes(letter != "." for letter in expected)


@pytest.mark.parametrize("wrong", [lambda text: text + 1, lambda text: 1 + text, lambda text: text * "x"])
def test_wrong_types_stay_wrong(wrong: Any) -> None:
    with pytest.raises(TypeError):
        wrong(marked("A"))


MESSAGE = {
    "role": "user",
    "content": "  </think> Grüße <b>x</b>\n{0} %s </think> tail",
    "name": ["one", "two"],
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": "</think>", "b": [1, None, True]}}}],
}
# Bodies over `m`, a message; a template that renders as it did is one whose tests and filters see plain text.
BODIES = [
    "{{ m.content | trim }}{{ m.content | upper }}{{ m.content | title }}{{ m.content | capitalize }}",
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endif %}",
    "{{ m | tojson }}{{ m.tool_calls | tojson(indent=2) }}{{ m.tool_calls }}{{ m.name }}",
    "{{ m.content.startswith(' ') }}{{ m.content[2:9] }}{{ m.content | replace('<', 'A') }}",
    "{{ m.name | join(', ') }}{{ m.name | map('upper') | join }}{{ m.name | first }}{{ m.name[::-1] }}",
    "{{ '%s and %05d' % (m.role, 3) }}{{ '{} {x!r:>9} {{}}'.format(m.role, x=m.content) }}",
    "{{ 'a%sb' | format(m.role) }}{{ '{0[0]}{1}'.format(m.name, 2) }}{{ m.content | indent(2) }}",
    "{{ m.content ~ 1 ~ none ~ m.nothing }}{{ (m.role + 'x') * 2 }}{{ m.content | list | length }}",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller else '' }}]{% endmacro %}{{ f(m.role) }}"
    "{% call f(1) %}z{% endcall %}",
    "{% set s %}<{{ m.role }}>{% endset %}{{ s }}{{ s.strip('<>') }}{{ m.content | length }}"
    "{% filter upper %}x{{ m.role }}{% endfilter %}",
    "{% set ns = namespace(t='') %}{% for c in m.role %}{% set ns.t = c ~ ns.t %}{% endfor %}{{ ns.t }}",
    "{{ m.content is string }}{{ m.content is mapping }}{{ m.x is defined }}{{ {'user': 1}[m.role] }}"
    "{{ m.content._marks is defined }}{{ m.items() | list }}{{ m.content | e }}{{ m.role in ['user', 'x'] }}",
    "{{ m.content.rsplit('>', 1)[0] }}{{ m.content.partition('<b>')[2] }}{{ m.content.splitlines()[0] }}",
    "{{ 'x' | center(5) }}{{ m.content | wordwrap(9) }}{{ m.content | truncate(9) }}{{ m.role | reverse }}",
    "{{ [m.role, 'x'] | join('|') }}{{ ['a', 'b'] | join }}{{ '-'.join(m.name) }}{{ m.role == 'user' }}",
]


@pytest.mark.parametrize("body", BODIES)
def test_templates_render_as_in_jinja2_alone(body: str) -> None:
    config = TokenizerConfig(chat_template=f"{{% set m = messages[0] %}}{body}")
    alone: Environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    alone.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    assert config.chat_template is not None
    expected = alone.from_string(config.chat_template).render(messages=[MESSAGE])
    assert str(render_chat(config, [MESSAGE])) == expected


@pytest.mark.parametrize(
    ("body", "marks"),
    [
        ("<a>{{ m }}</a>", "111.1111"),
        ("{{ '<a>' + m }}{{ m ~ '<b>' }}", "111..111"),
        ("{{ ['<', m, '>'] | join('-') }}{{ ['<', m] | join }}", "11.111."),
        ("{{ '<%s>' % m }}{{ '<%s>' | format(m) }}", "1.11.1"),
        ("{{ '<{}>'.format(m) }}{{ '<{x}{}>'.format(1, x=m) }}", "1.11..1"),
        ("{{ m.replace('m', '<a>') }}{{ '<m>' | replace('m', m) }}", "1111.1"),
        ("{% set s %}<{{ m }}>{% endset %}{{ s | upper }}{{ s[:1] }}", "1.11"),
        ("{{ {'k': '<v>'}['k'] }}{{ ['<l>'] | first }}{{ bos_token }}{{ m | default('<d>') }}", "111111111."),
        ("{% macro f(x, y='<y>') %}<f>{{ x }}{{ y }}{% endmacro %}{{ f(m) }}", "111.111"),
        ("{{ m | tojson }}{{ 1 }}{{ [m] }}", "...1....."),
    ],
)
def test_what_a_template_writes_is_its_own(body: str, marks: str) -> None:
    config = TokenizerConfig(
        chat_template=f"{{% set m = messages[0].content %}}{body}", special_tokens={"bos_token": "<s>"}
    )
    rendered = render_chat(config, [{"role": "user", "content": "m"}])
    assert written_by_template(rendered) == bytes(mark == "1" for mark in marks)
