"""Token ids, weights and parses that are known to be right, for the families' real tokenizers.

`golden/renderers.json.gz` holds ids and expected messages only. They are the answers of the
models' own chat templates, of openai-harmony and, where those are silent, of tinker-cookbook
0.5.8, each judged; control-token text in content is expected as text.
"""

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cookbook_fx.chat import Conversation, Message, conversation_from_dict
from cookbook_fx.renderers import TrainOnWhat

_DATE = "2025-06-28"


@cache
def golden() -> dict[str, Any]:
    with gzip.open(Path(__file__).parent / "golden" / "renderers.json.gz") as file:
        return json.load(file)


def conversation(case_id: str, *, customized: bool = False) -> Conversation:
    """One of the conversations; under CUSTOMIZED every second message is trained on."""
    row = golden()["conversations"][case_id]
    messages = row["messages"]
    if row.get("tools_system"):
        messages = [{"role": "system", "content": row["tools_system"]}, *messages]
    read = conversation_from_dict({"messages": messages, "tools": row.get("tools")})
    if not customized:
        return read
    return tuple(replace(message, trainable=i % 2 == 0) for i, message in enumerate(read))


def rendered(renderer, case: dict[str, Any], option: TrainOnWhat | None = None):
    """Tokens (and weights under an option) as the renderer has them, in the golden file's form."""
    row = golden()["conversations"][case["id"]]
    if case["what"] == "generation_prompt":
        added = len(conversation(case["id"])) - len(row["messages"])
        messages = conversation(case["id"])[: case["n_messages"] + added]
        prefill = row.get("prefill") if case["prefill"] else None
        return renderer.build_generation_prompt(messages, prefill=prefill).tolist()
    messages = conversation(case["id"], customized=option is TrainOnWhat.CUSTOMIZED)
    example = renderer.build_supervised_example(messages, option or TrainOnWhat.ALL_TOKENS)
    return example.weights.tolist() if option else example.tokens.tolist()


def unpacked(runs: list[list[float]]) -> list[float]:
    """Weights from run lengths."""
    return [value for value, count in runs for _ in range(count)]


def as_upstream(message: Message) -> dict[str, Any]:
    """A parsed message in the golden file's form."""
    parts = {"TextPart": "text", "ThinkingPart": "thinking"}
    content: Any = message.content
    if not isinstance(content, str):
        kinds = [(parts[type(part).__name__], part) for part in content]
        content = [{"type": kind, kind: getattr(part, kind)} for kind, part in kinds]
    calls = [
        {
            "type": "function",
            "id": call.id,
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    unparsed = [
        {"raw_text": call.raw_text, "error": call.error} for call in message.unparsed_tool_calls
    ]
    optional = {"tool_calls": calls, "unparsed_tool_calls": unparsed}
    return {"role": message.role, "content": content} | {k: v for k, v in optional.items() if v}
