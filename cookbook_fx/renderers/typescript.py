"""Tools as the types of functions, the way gpt-oss reads them.

    // The weather now.
    type weather = (_: {
    // of a town
    city: string,
    unit?: "celsius" | "kelvin", // default: celsius
    }) => any;

It looks like TypeScript and is read by a model alone: nothing is escaped, comments are not split
into lines, and what JSON Schema knows beyond this (`anyOf`, `$ref`) is `any`. The text is that of
the reference implementation, openai-harmony 0.0.8.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cookbook_fx.chat import ToolSpec
from cookbook_fx.errors import DataError

_NAMED = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def function_type(tool: ToolSpec) -> str:
    """A tool's declaration.

    Raises:
        DataError: the parameters are nested too deeply.

    Example:
        >>> print(function_type(ToolSpec(name="now", description="The time.", parameters={})))
        // The time.
        type now = () => any;
    """
    *lines, last = tool.description.split("\n")
    if last:
        lines.append(last)
    about = "".join("// " + line.removesuffix("\r") + "\n" for line in lines)
    takes_any = tool.parameters.get("properties") or "oneOf" in tool.parameters
    try:
        arguments = f"_: {_type(tool.parameters, '')}" if takes_any else ""
    except RecursionError as error:
        raise DataError(f"the parameters of {tool.name} are nested too deeply") from error
    return f"{about}type {tool.name} = ({arguments}) => any;"


def _type(schema: Any, indent: str) -> str:
    match schema:
        case {"oneOf": [*variants]}:
            notes = [_note(_text(v, "description"), _default(v, quoted=True)) for v in variants]
            return _union(variants, notes, indent)
        case {"type": [*names]}:
            return " | ".join("number" if name == "integer" else str(name) for name in names)
        case {"type": "object"}:
            about = _comment(_text(schema, "description"), indent)
            return f"{about}{{\n{''.join(_properties(schema, indent))}{indent}}}"
        case {"type": "string", "enum": [_, *_] as values}:
            return " | ".join(f'"{value}"' for value in values)
        case {"type": "array", "items": items}:
            return f"{_type(items, indent)}[]"
        case {"type": "array"}:
            return "Array<any>"
        case {"type": str(name)}:
            return _NAMED.get(name, "any")
        case _:
            return "any"


def _properties(schema: Mapping[str, Any], indent: str) -> Iterator[str]:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping):
        return
    required = required if isinstance(required, list) else ()
    for key, held in properties.items():
        name = indent + key + ("" if key in required else "?")
        title = _text(held, "title")
        yield f"{indent}// {title}\n{indent}//\n" if title is not None else ""
        match held:
            case {"oneOf": [*variants]}:
                yield from _alternatives(held, variants, name, indent)
            case _:
                yield _comment(_text(held, "description"), indent)
                yield _examples(held, indent)
                default = _note(_default(held))
                yield f"{name}: {_nullable(held, indent + '    ')},{default}\n"


def _alternatives(
    held: Mapping[str, Any], variants: Sequence[Any], name: str, indent: str
) -> Iterator[str]:
    """A property that is one of several types; its description is said once."""
    description = _text(held, "description")
    said = [_text(variant, "description") for variant in variants]
    is_said_below = said[:1] == [description]
    notes = [
        _note(
            None if own == description or (i == 0 and description is not None) else own,
            _default(variant),
        )
        for i, (own, variant) in enumerate(zip(said, variants, strict=True))
    ]
    yield _examples(held, indent)
    yield "" if is_said_below else _comment(description, indent)
    yield _comment(_default(held), indent)
    yield f"{name}:{_union(variants, notes, indent)}\n{indent},\n"


def _union(variants: Sequence[Any], notes: Sequence[str], indent: str) -> str:
    return "".join(
        f"\n{indent} | {_nullable(variant, indent + '   ')}{note}"
        for variant, note in zip(variants, notes, strict=True)
    )


def _nullable(schema: Any, indent: str) -> str:
    written = _type(schema, indent)
    may_be_null = isinstance(schema, Mapping) and schema.get("nullable") is True
    return f"{written} | null" if may_be_null and "null" not in written else written


def _default(schema: Any, *, quoted: bool = False) -> str | None:
    """A choice of an enumeration stands bare, any other text in quotes."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return None
    default = schema["default"]
    if isinstance(default, str) and not schema.get("enum"):
        return f'default: "{default}"'
    if isinstance(default, str) and not quoted:
        return f"default: {default}"
    written = json.dumps(default, ensure_ascii=False, separators=(",", ":"))
    return f"default: {written}"


def _examples(schema: Any, indent: str) -> str:
    """Those that are text."""
    match schema:
        case {"examples": [_, *_] as examples}:
            texts = (f'{indent}// - "{said}"\n' for said in examples if isinstance(said, str))
            return f"{indent}// Examples:\n{''.join(texts)}"
        case _:
            return ""


def _text(schema: Any, key: str) -> str | None:
    held = schema.get(key) if isinstance(schema, Mapping) else None
    return held if isinstance(held, str) else None


def _comment(text: str | None, indent: str) -> str:
    return "" if text is None else f"{indent}// {text}\n"


def _note(*texts: str | None) -> str:
    said = [text for text in texts if text is not None]
    return f" // {' '.join(said)}" if said else ""
