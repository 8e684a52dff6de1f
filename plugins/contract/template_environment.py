"""The jinja2 environment of chat templates: transformers' own, with strings that know who wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from itertools import count
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import do_join
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from kvfold.plugins.contract.template_text import TemplateText, by_template, join_texts, written_by_template


class RefusalError(TemplateError):
    """The template itself refuses the messages, by `raise_exception`."""


@lru_cache(maxsize=8)
def compile_template(source: str) -> Template:
    """A template, ready to render; raises jinja2's TemplateSyntaxError."""
    return _ChatEnvironment().from_string(source)


@lru_cache(maxsize=8)
def undeclared_names(source: str) -> frozenset[str]:
    """Names that a template takes from whoever renders it; raises jinja2's TemplateSyntaxError."""
    return frozenset(find_undeclared_variables(_ChatEnvironment().parse(source)))


class _MarkedCode(CodeGenerator):
    """Compiles every text of a template to one that is marked as the template's."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        """A text within an expression."""
        if isinstance(node.value, str):
            self.write(f"environment.by_template({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        """The operator `~`."""
        self.write("environment.concat(map(str, (")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        """Text between tags, and expressions that name no variable."""
        return f"environment.by_template({super()._output_const_repr(group)})"


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _MarkedCode
    concat = staticmethod(join_texts)
    by_template = staticmethod(by_template)

    def __init__(self) -> None:
        # Unoptimized: a list of texts that the optimizer folds into one constant would not be marked.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _to_json
        self.filters["join"] = _join
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's `format`, which keeps the marks of a text that the template wrote."""
        plain, text = super().wrap_str_format(value), getattr(value, "__self__", "")
        if plain is None or value.__name__ != "format" or 0 in written_by_template(text):
            return plain
        formatter = SandboxedFormatter(self)

        def fill(*values: Any, **named: Any) -> str:
            numbers = count()
            pieces: list[str] = []
            for literal, name, form, conversion in formatter.parse(text):
                pieces.append(by_template(literal))
                if name is not None:
                    name = name if name and name[0] not in ".[" else f"{next(numbers)}{name}"
                    value = values[int(name)] if name.isdecimal() else named.get(name)
                    if form or conversion or not isinstance(value, str):
                        field = f"{{{name}{'!' if conversion else ''}{conversion or ''}:{form}}}"
                        value = formatter.vformat(field, values, named)
                    pieces.append(value)
            return join_texts(pieces)

        return fill


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; for a reader it is only its body."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body between the tags, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pass_eval_context
def _join(context: EvalContext, texts: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    """jinja2's own; without a text between them it joins by a plain one, which marks nothing."""
    joined: str = do_join(context, texts, TemplateText(between, written_by_template(between)), attribute)
    return joined


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise RefusalError(message)
