"""The part of a Hugging Face fast tokenizer that the library uses."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import tokenizers

StopSequences = tuple[str, ...] | tuple[int, ...]
"""What ends a sample: strings looked for in the text, or token ids; never both."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back, as `transformers`' fast tokenizers do it."""

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer proper, which knows nothing of `transformers`."""

    @property
    def bos_token_id(self) -> int | None:
        """What begins a sequence, where the model wants it."""

    @property
    def eos_token_id(self) -> int | None:
        """What ends a document or turn."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that stand for structure and not for text."""

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, where it has one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; control-token text in `text` becomes control ids."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, control tokens included."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of one token, or the unknown token's id or None where there is none."""

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Texts of the tokens with a name, such as `bos_token`; templates may ask for them."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, **variables: Any
    ) -> Any:
        """The conversation as the model's own template writes it."""

    def __len__(self) -> int:
        """Ids in use, added tokens included."""
