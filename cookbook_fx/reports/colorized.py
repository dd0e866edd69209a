"""Text with a weight for each token, to be seen: in colour on a terminal, marked, or as HTML.

Green is trained (a weight above 0), yellow is only read (0), red is trained away from (below 0).

Every character of the decoded text is shown once. One whose bytes are spread over tokens of
different weights has the colour of the token that completes it. Control tokens are spelled out, and
control characters shown as pictures (␛ for escape), so that no text can command a terminal or break
a page; line breaks and tabs stay as they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from operator import itemgetter
from string import Template
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int, Num
from rich.color import ColorSystem
from rich.style import Style

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import SupervisedExample
from cookbook_fx.tokens import Tokenizer

# Lengths are open here, so that a wrong one is the caller's DataError and not a type error.
TokenIds = Sequence[int] | Int[np.ndarray, "..."]
Weights = Sequence[float | int] | Num[np.ndarray, "..."]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleSection:
    """One example of an HTML page.

    Args:
        heading: what stands above it, as text.
        tokens: token ids, `[token]`.
        weights: loss weight of each token, `[token]`.
    """

    heading: str
    tokens: TokenIds
    weights: Weights


def format_colorized(
    tokens: TokenIds,
    weights: Weights,
    tokenizer: Tokenizer,
    draw_newline_arrow: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Decoded text in terminal colours: green above 0, yellow at 0, red below.

    Colours end with each line and begin anew on the next, as pagers want it.

    Args:
        tokens: token ids, `[token]`.
        weights: weight of each token, `[token]`.
        tokenizer: the one the tokens were made with.
        draw_newline_arrow: show the line breaks in the text as ↵, before they break the line.

    Raises:
        DataError: not one finite weight for each token, or an id the tokenizer does not know.
    """
    spans = _spans(tokens, np.sign(_checked(tokens, weights)), tokenizer)
    return "".join(_in_color(span, draw_newline_arrow=draw_newline_arrow) for span in spans)


def format_marked(tokens: TokenIds, weights: Weights, tokenizer: Tokenizer) -> str:
    """Decoded text for where there are no colours: {+trained+}, read, [-trained away from-].

    The marks are those of `git diff --word-diff`.

    Args:
        tokens: token ids, `[token]`.
        weights: weight of each token, `[token]`.
        tokenizer: the one the tokens were made with.

    Raises:
        DataError: not one finite weight for each token, or an id the tokenizer does not know.
    """
    spans = _spans(tokens, np.sign(_checked(tokens, weights)), tokenizer)
    return "".join(_MARKS[span.level].format(span.text) for span in spans)


def format_pieces(pieces: Iterable[tuple[str, float]], *, in_color: bool) -> str:
    """Texts with a weight each, as `format_colorized` or `format_marked` write them.

    For what is known as text alone, without the tokens it was made of.

    Args:
        pieces: text and weight, in order.
        in_color: in terminal colors, not marked.

    Example:
        >>> format_pieces([("2 + 2 = ", 0.0), ("5", -0.5), ("!\x1b", 0.0)], in_color=False)
        '2 + 2 = [-5-]!␛'
    """
    spans = [_Span(text.translate(_PICTURES), int(np.sign(weight))) for text, weight in pieces]
    if in_color:
        return "".join(_in_color(span, draw_newline_arrow=False) for span in spans)
    return "".join(_MARKS[span.level].format(span.text) for span in spans)


def format_html(
    tokens: TokenIds,
    weights: Weights,
    tokenizer: Tokenizer,
    draw_newline_arrow: bool = False,  # noqa: FBT001, FBT002
    *,
    largest: float | None = None,
) -> str:
    """Decoded text as one `<pre class="weighted">`, shaded by weight; `WEIGHTED_CSS` goes with it.

    The stronger the shade, the larger the weight, in four steps up to the largest of this text.

    Args:
        tokens: token ids, `[token]`.
        weights: weight of each token, `[token]`.
        tokenizer: the one the tokens were made with.
        draw_newline_arrow: show the line breaks in the text as ↵, before they break the line.
        largest: the weight of the strongest shade, for texts to compare; None is this text's own.

    Raises:
        DataError: not one finite weight for each token, or an id the tokenizer does not know.
    """
    shades = _shades(_checked(tokens, weights), largest=largest)
    return _pre(_spans(tokens, shades, tokenizer), draw_newline_arrow=draw_newline_arrow)


def format_html_pieces(pieces: Iterable[tuple[str, float]]) -> str:
    """Texts with a weight each, as `format_html` writes them.

    For what is known as text alone, without the tokens it was made of.

    Args:
        pieces: text and weight, in order.

    Example:
        >>> format_html_pieces([("2 < 3", 0.5)])
        '<pre class="weighted"><span class="up4">2 &lt; 3</span></pre>'
    """
    weighted = list(pieces)
    shades = _shades(np.array([weight for _, weight in weighted], np.float64), largest=None)
    spans = [
        _Span(text.translate(_PICTURES), int(shade))
        for (text, _), shade in zip(weighted, shades, strict=True)
    ]
    return _pre(spans, draw_newline_arrow=False)


def html_page(examples: Iterable[ExampleSection], tokenizer: Tokenizer, *, title: str) -> str:
    """Examples as one HTML file that needs no other, readable in light and dark.

    Args:
        examples: what is shown, in this order.
        tokenizer: the one their tokens were made with.
        title: the page's, as text.

    Raises:
        DataError: as in `format_html`.
    """
    sections = "\n".join(
        f"<section>\n<h2>{_text(example.heading)}</h2>\n"
        f"{format_html(example.tokens, example.weights, tokenizer)}\n</section>"
        for example in examples
    )
    return _PAGE.substitute(
        title=_text(title), style=_PAGE_CSS + WEIGHTED_CSS, legend=_LEGEND, sections=sections
    )


def colorize_example(datum: Datum, tokenizer: Tokenizer, key: str = "weights") -> str:
    """A datum in terminal colours, as a whole sequence: its inputs and its last target.

    Args:
        datum: one target a position.
        tokenizer: the one its tokens were made with.
        key: the column that colours: `weights`, `advantages` or `logprobs`.

    Raises:
        ConfigurationError: an unknown column.
        DataError: the datum lacks the column or has several targets a position, or as in
            `format_colorized`.
    """
    example = tokens_and_weights(datum, key=key)
    return format_colorized(example.tokens, example.weights, tokenizer)


def tokens_and_weights(datum: Datum, *, key: str = "weights") -> SupervisedExample:
    """A datum as the sequence it was made of; the first token, which nothing predicts, weighs 0.

    Args:
        datum: one target a position.
        key: the column that is taken for the weights: `weights`, `advantages` or `logprobs`.

    Raises:
        ConfigurationError: an unknown column.
        DataError: the datum lacks the column, or has several targets a position.

    Example:
        >>> import numpy as np
        >>> datum = Datum(tokens=np.array([5, 6]), target_tokens=np.array([6, 7]))
        >>> tokens, weights = tokens_and_weights(datum)
        >>> tokens.tolist(), weights.tolist()
        ([5, 6, 7], [0.0, 1.0, 1.0])
    """
    if key not in _COLUMNS:
        raise ConfigurationError(f"`key` must be one of {', '.join(_COLUMNS)}; got {key!r}")
    if datum.target_tokens.ndim != 1:
        raise DataError(
            "only a datum of one target a position can be shown as text, got targets of shape "
            f"{datum.target_tokens.shape}"
        )
    column = getattr(datum, key)
    if column is None:
        if key != "weights":
            raise DataError(f"the datum has no {key}; choose another `key`")
        # What a datum without weights means.
        column = np.ones(datum.length, np.float32)
    return SupervisedExample(
        tokens=np.append(datum.tokens, datum.target_tokens[-1]),
        weights=np.concatenate([np.zeros(1, column.dtype), column]),
    )


_COLUMNS = ("weights", "advantages", "logprobs")


class _Span(NamedTuple):
    """Text of one colour: the sign of its weight, and in HTML times its shade."""

    text: str
    level: int


def _checked(tokens: TokenIds, weights: Weights) -> np.ndarray:
    """The weights as an array, one finite number a token."""
    checked = np.asarray(weights, np.float64)
    if checked.shape != (len(tokens),):
        raise DataError(
            f"each token needs a weight, got {len(tokens)} tokens and weights of shape "
            f"{checked.shape}"
        )
    if not np.isfinite(checked).all():
        index = int(np.argmin(np.isfinite(checked)))
        raise DataError(f"weights must be finite, got {checked[index]} at token {index}")
    return checked


def _shades(weights: np.ndarray, *, largest: float | None) -> np.ndarray:
    """The sign of each weight times 1 to 4, by its size."""
    sizes = np.abs(weights)
    if largest is None:
        largest = float(sizes.max(initial=0.0))
    if largest > 0:
        sizes = np.clip(np.ceil(_NUM_SHADES * (sizes / largest)), 1, _NUM_SHADES)
    levels: np.ndarray = np.sign(weights) * sizes
    return levels


def _spans(tokens: TokenIds, levels: np.ndarray, tokenizer: Tokenizer) -> list[_Span]:
    """The decoded text, cut wherever the level changes, and only there; no span is empty."""
    ids = [int(token) for token in tokens]
    if not ids:
        return []
    _refuse_unknown(ids, tokenizer.backend_tokenizer)
    ends = [*(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(ids)]
    text, cuts = _cut(ids, ends, tokenizer.backend_tokenizer)
    pieces = (
        (int(levels[end - 1]), text[begin:until].translate(_PICTURES))
        for (begin, until), end in zip(pairwise([0, *cuts]), ends, strict=True)
        if begin < until
    )
    by_level = groupby(pieces, key=itemgetter(0))
    return [_Span("".join(piece for _, piece in group), level) for level, group in by_level]


def _refuse_unknown(ids: list[int], tokenizer: tokenizers.Tokenizer) -> None:
    # The tokenizer itself would leave them out.
    highest = np.iinfo(np.int32).max
    for token in dict.fromkeys(ids):
        if not 0 <= token <= highest or tokenizer.id_to_token(token) is None:
            raise DataError(
                f"token id {token} at position {ids.index(token)} is not in the tokenizer's "
                "vocabulary; show the tokens with the tokenizer they were made with"
            )


def _cut(ids: list[int], ends: list[int], tokenizer: tokenizers.Tokenizer) -> tuple[str, list[int]]:
    """The whole text, and for each end (the last is the last token's) how far `ids[:end]` reach.

    Tokens are decoded after those before the last end that no character straddles, since some
    vocabularies write the first token of a text otherwise; where that is not enough, after all.
    """

    def decode(begin: int, end: int) -> str:
        return tokenizer.decode(ids[begin:end], skip_special_tokens=False)

    whole = decode(0, len(ids))
    cuts: list[int] = []
    # Of the last such end: the token, the character, and the text decoded before it, from `begin`.
    token, start, begin, known = 0, 0, 0, ""
    for end in ends:
        text = decode(begin, end)
        agreed = _agreed(text[len(known) :], whole, start)
        left = text[len(known) + agreed :]
        if token and (not text.startswith(known) or left.strip(_REPLACEMENT)):
            token, start, begin, known = 0, 0, 0, ""
            text = decode(0, end)
            agreed = _agreed(text, whole, 0)
            left = text[agreed:]
        cuts.append(max(start + agreed, *cuts[-1:], 0))
        if not left and not text.endswith(_REPLACEMENT):
            token, start, begin, known = end, start + agreed, token, decode(token, end)
    cuts[-1] = len(whole)
    return whole, cuts


def _agreed(text: str, whole: str, start: int) -> int:
    """How many characters of `text` are those of `whole` from `start` on."""
    if whole.startswith(text, start):
        return len(text)
    there = whole[start : start + len(text)]
    pairs = enumerate(zip(text, there, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(there))


def _in_color(span: _Span, *, draw_newline_arrow: bool) -> str:
    text = _with_arrows(span.text) if draw_newline_arrow else span.text
    style = _STYLES[span.level]
    return "\n".join(
        style.render(line, color_system=ColorSystem.STANDARD) for line in text.split("\n")
    )


def _pre(spans: Iterable[_Span], *, draw_newline_arrow: bool) -> str:
    body = "".join(
        f'<span class="{_class(span.level)}">'
        f"{escape(_with_arrows(span.text) if draw_newline_arrow else span.text)}</span>"
        for span in spans
    )
    return f'<pre class="weighted">{body}</pre>'


def _with_arrows(text: str) -> str:
    return text.replace("\n", "↵\n")


def _class(level: int) -> str:
    return "zero" if level == 0 else f"{'up' if level > 0 else 'down'}{abs(level)}"


def visible(text: str) -> str:
    """Text with pictures in the place of control characters; line breaks and tabs stay.

    Example:
        >>> visible("a\x1bb")
        'a␛b'
    """
    # Plain, also where it is of a type that says it is markup.
    return str(text).translate(_PICTURES)


def _text(text: str) -> str:
    return escape(visible(text))


# What a decoder writes for bytes that are no character, or not yet one.
_REPLACEMENT = "\ufffd"
_CONTROLS = set(range(0x20)) - {ord("\n"), ord("\t")}
# Unicode has pictures of the ASCII controls alone.
_PICTURES = (
    {code: chr(0x2400 + code) for code in _CONTROLS}
    | {0x7F: "␡"}
    | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
)

_STYLES = {1: Style(color="green"), 0: Style(color="yellow"), -1: Style(color="red")}
_MARKS = {1: "{{+{}+}}", 0: "{}", -1: "[-{}-]"}

_NUM_SHADES = 4


def _shade_rules() -> str:
    # Translucent, so that one colour does for light and dark.
    steps = range(1, _NUM_SHADES + 1)
    up = [
        f".weighted .up{step} {{ background: rgb(30 160 70 / {0.11 * step:.2f}) }}"
        for step in steps
    ]
    down = [
        f".weighted .down{step} {{ background: rgb(220 50 50 / {0.11 * step:.2f}); "
        "text-decoration: underline dotted }"
        for step in steps
    ]
    return "\n".join([*up, *down])


WEIGHTED_CSS = f"""
.weighted {{ margin: 0; padding: .75em 1em; border: 1px solid rgb(128 128 128 / .4);
  border-radius: 6px; font: .875rem/1.65 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4 }}
.weighted span {{ padding: .12em 0; print-color-adjust: exact; -webkit-print-color-adjust: exact;
  box-decoration-break: clone; -webkit-box-decoration-break: clone }}
.weighted .zero {{ background: rgb(230 190 0 / .12) }}
{_shade_rules()}
"""
"""The style sheet of what `format_html` makes."""

_PAGE_CSS = """
:root { color-scheme: light dark }
body { margin: 2rem auto; max-width: 64rem; padding: 0 1rem;
  font: 1rem/1.5 system-ui, sans-serif; background: Canvas; color: CanvasText }
h1 { font-size: 1.4rem; overflow-wrap: anywhere }
h2 { margin: 1.75rem 0 .5rem; font-size: 1rem }"""

_LEGEND = (
    '<pre class="weighted"><span class="up4">trained</span>   <span class="zero">read</span>   '
    '<span class="down4">trained away from</span>   (the stronger, the larger the weight)</pre>'
)

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$legend
$sections
</body>
</html>
""")
