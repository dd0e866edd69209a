"""Prompts from the records in which people keep them, cut to a length."""

from collections.abc import Mapping, Sequence
from typing import Any

from cookbook_fx.chat.parts import shown
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.tokens import Tokenizer

_TEXT_KEYS = ("prompt", "question", "problem", "instruction", "query")
_CONVERSATION_KEYS = ("messages", "conversations", "conversation", "prompt")
_SPEAKERS = ("user", "human")


def prompt_from_dict(row: Mapping[str, Any]) -> str | None:
    """What is asked in one record: a text, or the first thing a user says in a conversation.

    Args:
        row: has the text under prompt, question, problem, instruction or query, or a conversation
            under messages, conversations or prompt, of `{"role": ..., "content": ...}` or
            `{"from": ..., "value": ...}`. Other keys are ignored.

    Returns:
        None for a conversation in which no user says anything in text.

    Raises:
        DataError: there is neither.

    Example:
        >>> prompt_from_dict({"question": "What is 2 + 2?"})
        'What is 2 + 2?'
        >>> prompt_from_dict({"messages": [{"role": "user", "content": "Hello"}]})
        'Hello'
    """
    for key in _TEXT_KEYS:
        if isinstance(row.get(key), str) and row[key].strip():
            text: str = row[key]
            return text
    for key in _CONVERSATION_KEYS:
        if isinstance(row.get(key), Sequence) and not isinstance(row[key], str):
            return _first_said(row[key])
    raise DataError(
        f"a prompt must be text under {', '.join(_TEXT_KEYS)}, or a conversation under "
        f"{', '.join(_CONVERSATION_KEYS)}; got the keys {shown(sorted(row))}"
    )


def _first_said(messages: Sequence[Any]) -> str | None:
    for message in messages:
        if not isinstance(message, Mapping):
            raise DataError(f"a message must be an object, got {shown(message)}")
        said = message.get("content", message.get("value"))
        if message.get("role", message.get("from")) in _SPEAKERS and isinstance(said, str):
            if said.strip():
                return said
    return None


def truncated_text(text: str, *, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The longest beginning of a text, or nearly, that is at most `max_tokens` tokens.

    It is cut between characters, so that the result never holds half a one.

    Args:
        text: any.
        tokenizer: counts the tokens, of the text alone.
        max_tokens: at least 1.

    Raises:
        ConfigurationError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ConfigurationError(f"`max_tokens` must be at least 1, got {max_tokens}")
    backend = tokenizer.backend_tokenizer
    encoded = backend.encode(text, add_special_tokens=False)
    kept = max_tokens
    while len(encoded.ids) > max_tokens:
        # A beginning may take a token more than it did in the whole, where that merged otherwise.
        text = text[: encoded.offsets[kept - 1][1]] if kept else ""
        encoded = backend.encode(text, add_special_tokens=False)
        kept -= 1
    return text
