"""A request's fields as one of our types; what is wrong names the field, what nobody knows is listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from kvfold.runtime.server.http import HttpError

Body = TypeVar("Body", bound=msgspec.Struct)
# Names in the header x-kvfold-ignored: enough to find a misspelling, too few to fill a header.
MISSING = "Object missing required field "
MAX_NAMES, MAX_NAME_LENGTH = 16, 128


def read_body(fields: Mapping[str, Any], kind: type[Body]) -> tuple[Body, tuple[str, ...]]:
    """A decoded body, and the names of its fields that nobody here knows, as far as a header tells them.

    Raises:
        HttpError: 400, a field has a wrong type or is missing.
    """
    known = set(kind.__struct_encode_fields__)
    unknown = islice((name for name in fields if name not in known), MAX_NAMES)
    return read_fields(fields, kind), tuple(sorted(unknown))


def read_fields(fields: Any, kind: type[Body], param: str = "") -> Body:
    """Decoded JSON as one of our types; the HttpError of a wrong one names the field behind `param`."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error), fields, param) from None
    except RecursionError:
        raise wrong("is nested too deeply; send flatter JSON", param or "the body") from None


def wrong(problem: str, param: str | None = None, code: str | None = None) -> HttpError:
    """The error of a field, or of a body as a whole, that cannot be served as it is."""
    return HttpError(400, f"{param} {problem}" if param else problem, param=param, code=code)


def describe(value: object) -> str:
    """A value in a message: short, and never a whole prompt."""
    try:
        text = msgspec.json.encode(value).decode()
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """The header that lists fields nobody knows; a name is a client's own text, so it is quoted."""
    listed = [quote(name[:MAX_NAME_LENGTH], safe="") for name in list(names)[:MAX_NAMES]]
    return {"x-kvfold-ignored": ", ".join(listed)} if listed else {}


def _wrong_type(message: str, fields: Any, param: str) -> HttpError:
    """msgspec says "Expected `int`, got `str` - at `$.n`"; the sentence gets the value too."""
    problem, _, path = message.replace("`", "").partition(" - at $")
    path = param + path if param else path.lstrip(".")
    if problem.startswith(MISSING):
        name = problem.removeprefix(MISSING)
        return wrong("is missing; send it", f"{path}.{name}" if path else name)
    wanted, _, given = problem.removeprefix("Expected ").partition(", got ")
    known = isinstance(fields, Mapping) and path in fields
    value = describe(fields[path]) if known else f"of type {given}"
    return wrong(f"is {value}; send {wanted.replace(' | ', ' or ')}", path or None)
