"""Text to ids such that text can never act as structure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tokenizers
from jaxtyping import Int

from cookbook_fx.errors import DataError, ModelError
from cookbook_fx.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCodec:
    """Encodes text as text, and names control tokens one by one.

    A tokenizer turns the *text* of a control token into its id, wherever that text comes from, so
    that a message saying `<|im_start|>system` forges a turn. `encode` here knows no control
    tokens: what they are spelled with becomes ordinary tokens. Ids of structure come only from
    `control`. Neither changes the tokenizer, so any number of threads may use one codec.

    Args:
        plain: the model's tokenizer without its control tokens.
        complete: the tokenizer with all of them.
        soft: control tokens that `encode` knows all the same, and their ids; see `knowing`.
        spelled: the bytes each token id stands for, where the tokens of a text stand for its bytes
            one after the other; None where what a token stands for depends on the others.
        ahead: what text is looked up in before it is encoded; see `encoding_by`.
    """

    plain: tokenizers.Tokenizer = field(repr=False)
    complete: tokenizers.Tokenizer = field(repr=False)
    soft: Mapping[str, int] = field(default_factory=dict)
    spelled: Mapping[int, bytes] | None = field(default=None, repr=False)
    ahead: Callable[[str], list[int] | None] | None = field(default=None, repr=False)
    _soft_spelled: re.Pattern[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # A token that begins as another does must be looked for first.
        longest_first = sorted(self.soft, key=len, reverse=True)
        pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self.soft else None
        object.__setattr__(self, "_soft_spelled", pattern)

    def knowing(self, *tokens: str) -> "TextCodec":
        """A codec whose `encode` takes these control tokens for what they are, and no others.

        For text in which a model writes its own marks, such as `<think>`; never for text that
        comes from elsewhere. It shares its tokenizers with this codec, and costs next to nothing.

        Raises:
            ModelError: the model has no such token.
        """
        return replace(self, soft={token: self.control(token) for token in tokens})

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, none of them a control token's but the soft ones'."""
        if self._soft_spelled is None:
            return self._plain_ids(text)
        ids: list[int] = []
        # Split by a group, every second piece is a token.
        for index, piece in enumerate(self._soft_spelled.split(text)):
            if index % 2:
                ids.append(self.soft[piece])
            elif piece:
                ids += self._plain_ids(piece)
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        known = self.ahead(text) if self.ahead is not None else None
        if known is not None:
            return known
        # A batch of one: unlike `encode`, it does not find where in the text each token stands,
        # which is a fifth of the work.
        return self.plain.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_batch(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of many texts at once, as `encode` finds them where no token is soft.

        Takes as many threads as TOKENIZERS_PARALLELISM and RAYON_NUM_THREADS allow.
        """
        distinct = list(dict.fromkeys(texts))
        encodings = self.plain.encode_batch_fast(distinct, add_special_tokens=False)
        return {text: each.ids for text, each in zip(distinct, encodings, strict=True)}

    def encoding_by(self, ahead: Callable[[str], list[int] | None]) -> "TextCodec":
        """A codec that asks `ahead` for the ids of plain text; None there leaves it to this one."""
        return replace(self, ahead=ahead)

    def encode_trusted(self, text: str) -> list[int]:
        """Token ids of `text`, in which control tokens may be spelled out."""
        return self.complete.encode(text, add_special_tokens=False).ids

    def trusting(self) -> "TextCodec":
        """A codec whose `encode` takes control tokens that are spelled out for what they are.

        For text that was formatted with care elsewhere; never for what a user or a tool says.
        """
        return replace(self, plain=self.complete, soft={})

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, control tokens spelled out and nothing tidied.

        Ids beyond the vocabulary, which models with a padded head can sample, are no text.

        Raises:
            DataError: an id is negative or too large to be one.
        """
        try:
            if self.spelled is None:
                return self.complete.decode(token_ids, skip_special_tokens=False)
            return b"".join(map(self.spelled.__getitem__, token_ids)).decode(errors="replace")
        except OverflowError as error:
            raise DataError(
                "token ids must be at least 0 and below 2³²; leave out padding such as -1"
            ) from error

    def control(self, token: str) -> int:
        """The id of one control token; ModelError if the model has no such token."""
        token_id = self.complete.token_to_id(token)
        if token_id is None:
            raise ModelError(f"the tokenizer has no token {token!r}; choose another renderer")
        return token_id


def text_codec(tokenizer: Tokenizer) -> TextCodec:
    """The codec of a Hugging Face fast tokenizer.

    Every added token counts as a control token, special or not (some models mark theirs as
    ordinary), except those made of white space alone, which some vocabularies use for
    indentation.

    Raises:
        ModelError: the vocabulary cannot be taken apart, so that text could still act as structure.
    """
    complete = tokenizer.backend_tokenizer
    added = complete.get_added_tokens_decoder()
    plain = tokenizers.Tokenizer(complete.model)
    if complete.normalizer is not None:
        plain.normalizer = complete.normalizer
    if complete.pre_tokenizer is not None:
        plain.pre_tokenizer = complete.pre_tokenizer
    white_space = {index: token for index, token in added.items() if token.content.isspace()}
    plain.add_tokens(list(white_space.values()))
    for index, token in added.items():
        is_text = index in white_space
        if (index in plain.encode(token.content, add_special_tokens=False).ids) != is_text:
            raise ModelError(
                f"token {index} {token.content!r} cannot be told apart from text in this "
                "tokenizer, so rendering would not be safe; report the model"
            )
    is_byte_level = isinstance(complete.decoder, tokenizers.decoders.ByteLevel)
    spelled = _Spelled(complete) if is_byte_level else None
    return TextCodec(plain=plain, complete=complete, spelled=spelled)


# The letters of byte-level vocabularies: of the printable bytes their own, of the others the
# next ones of Unicode.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + index): byte for index, byte in enumerate(_OTHERS)
}


class _Spelled(dict[int, bytes]):
    """Bytes of the tokens of a byte-level vocabulary, each found when it is first asked for."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        spelled = b"" if token is None else _token_bytes(token)
        self[token_id] = spelled
        return spelled


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(map(_BYTE_OF_LETTER.__getitem__, token))
    except KeyError:
        # Some added tokens are spelled in other letters; as the decoder does, all or none.
        return token.encode()


def byte_lengths(tokenizer: Tokenizer) -> Int[np.ndarray, " vocab"]:
    """How many bytes of text each token id stands for; 0 for special tokens.

    Sums over a sequence are exact, also where a character is spread over several tokens. Two
    kinds of vocabulary are known: byte-level ones, whose tokens are spelled with one
    letter a byte (Radford et al. 2019, GPT-2), and SentencePiece ones, where ▁ is a space and
    <0x0A> a byte.
    """
    complete = tokenizer.backend_tokenizer
    special = set(tokenizer.all_special_ids)
    added = complete.get_added_tokens_decoder()
    vocabulary = complete.get_vocab(with_added_tokens=True)
    is_byte_level = "ByteLevel" in str(complete.decoder)
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for token, index in vocabulary.items():
        if index in added:
            is_text = index not in special and not added[index].special
            lengths[index] = len(token.encode()) if is_text else 0
        else:
            lengths[index] = len(token) if is_byte_level else _sentencepiece_bytes(token)
    return lengths


def _sentencepiece_bytes(token: str) -> int:
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return 1 if is_byte else len(token.replace("▁", " ").encode())
