import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.reports import (
    WEIGHTED_CSS,
    ExampleSection,
    colorize_example,
    format_colorized,
    format_html,
    format_marked,
    html_page,
    tokens_and_weights,
)
from tests.conftest import TINY_VOCAB

GREEN, YELLOW, RED, OFF = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
CODES = re.compile("\x1b\\[[0-9;]*m")
VOID = {"meta"}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory):
    """Every byte is a token of it, so that any ids make any bytes."""
    return AutoTokenizer.from_pretrained(tiny_model_directory)


@pytest.fixture(scope="module")
def sentencepiece():
    """Spaces written ▁, bytes <0x..>, and the first space of a text dropped, as Llama 2 has it."""
    words = ["▁the", "▁cat", "s", "▁▁▁", "\n", *(f"<0x{byte:02X}>" for byte in "中🎉".encode())]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="s"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def ids_of(text, tokenizer):
    return tokenizer.encode(text, add_special_tokens=False)


def bytes_of(text, tokenizer):
    """One token a byte, whatever the tokenizer would merge."""
    letters = (tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)[0][0],)
    return [tokenizer.convert_tokens_to_ids(letter) for letter in letters[0]]


def visible(text):
    """The text with its control characters as pictures."""
    return "".join(
        character
        if character in "\n\t" or not character.isascii() or character.isprintable()
        else chr(0x2400 + ord(character)) if character != "\x7f" else "␡"
        for character in text
    ).translate({code: f"\\x{code:02x}" for code in range(0x80, 0xA0)})  # fmt: skip


class Page(HTMLParser):
    """Text and tags of a page whose every tag must be closed, in order."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.spans = [], [], "", []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "span":
            self.spans.append((dict(attrs)["class"], ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.text += data
        if self.open and self.open[-1] == "span":
            kind, text = self.spans[-1]
            self.spans[-1] = (kind, text + data)


def in_any_tokenizer(vocabulary=TINY_VOCAB):
    """Token ids, and a weight for each."""
    weight = st.sampled_from([0.0, 1.0, -1.0, 0.25, 1e-300, -3e38]) | st.floats(-2, 2)
    return st.lists(st.tuples(st.integers(0, vocabulary - 1), weight), max_size=40)


def apart(pairs):
    return [token for token, _ in pairs], [weight for _, weight in pairs]


def test_green_is_trained_yellow_read_and_red_trained_away_from(tokenizer):
    ids = ids_of("the cat sat", tokenizer)
    assert [tokenizer.decode(token) for token in ids] == ["the", " ", "cat", " ", "sat"]
    colorized = format_colorized(ids, [0.0, 0.5, 0.1, -2.0, -1.0], tokenizer)
    assert colorized == f"{YELLOW}the{OFF}{GREEN} cat{OFF}{RED} sat{OFF}"
    assert format_marked(ids, [0, 1, 1, -1, -2], tokenizer) == "the{+ cat+}[- sat-]"


def test_like_tokens_have_one_code_and_each_line_its_own(tokenizer):
    ids = ids_of("the cat\n\nsat on", tokenizer)
    weights = np.full(len(ids), 0.5, np.float32)
    assert len(ids) >= 5
    both = f"{GREEN}the cat{OFF}\n\n{GREEN}sat on{OFF}"
    assert format_colorized(np.array(ids, np.int32), weights, tokenizer) == both
    arrows = f"{GREEN}the cat↵{OFF}\n{GREEN}↵{OFF}\n{GREEN}sat on{OFF}"
    assert format_colorized(ids, weights, tokenizer, True) == arrows
    assert format_colorized(ids, weights, tokenizer, draw_newline_arrow=True) == arrows


def test_control_tokens_are_spelled_out(tokenizer):
    assert format_colorized([1], [1.0], tokenizer) == f"{GREEN}<|im_start|>{OFF}"


def test_no_tokens_are_no_text(tokenizer):
    assert format_colorized([], [], tokenizer) == ""
    assert format_marked(np.array([], np.int32), np.array([]), tokenizer) == ""
    assert format_html([], [], tokenizer) == '<pre class="weighted"></pre>'


@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ([1, 1, 1], "{+中+}"),
        ([0, 0, 1], "{+中+}"),
        ([1, 0, 0], "中"),
        ([1, -1, 0], "中"),
        ([0, 1, -1], "[-中-]"),
    ],
)
def test_a_character_in_parts_belongs_to_the_token_that_completes_it(tokenizer, weights, shown):
    ids = bytes_of("中", tokenizer)
    assert len(ids) == 3
    assert format_marked(ids, weights, tokenizer) == shown


def test_bytes_that_are_no_character_are_shown_where_they_stand(tokenizer):
    first, *rest = bytes_of("中", tokenizer)
    (letter,) = ids_of("a", tokenizer)
    assert format_marked([first, letter], [1, 0], tokenizer) == "{+\ufffd+}a"
    assert format_marked([letter, first], [0, 1], tokenizer) == "a{+\ufffd+}"
    assert format_marked([first, first, *rest], [1, 0, 0, 0], tokenizer) == "{+\ufffd+}中"


def test_text_cannot_command_the_terminal(tokenizer):
    ids = ids_of("\x1b[2J\x07\r\x7f\x9b", tokenizer)
    assert format_marked(ids, [0] * len(ids), tokenizer) == "␛[2J␇␍␡\\x9b"


def test_html_is_escaped_and_needs_no_other_file(tokenizer):
    ids = ids_of("<script>alert('&')</script>\x00", tokenizer)
    html = html_page(
        [ExampleSection(heading="<b>1</b>", tokens=ids, weights=[1.0] * len(ids))],
        tokenizer,
        title="a & b </title>",
    )
    page = Page(html)
    assert ("up4", "<script>alert('&')</script>␀") in page.spans
    assert not {"script", "b", "link", "img"} & set(page.tags)
    assert "://" not in html
    assert WEIGHTED_CSS in html
    assert "<title>a &amp; b &lt;/title&gt;</title>" in html
    assert "<h2>&lt;b&gt;1&lt;/b&gt;</h2>" in html
    assert "$" not in html


def test_dollars_in_text_stay(tokenizer):
    ids = ids_of("$title $$", tokenizer)
    section = ExampleSection(heading="$5", tokens=ids, weights=[0.0] * len(ids))
    html = html_page([section], tokenizer, title="$style")
    assert ("zero", "$title $$") in Page(html).spans
    assert html.count("$style") == 2


def test_the_larger_the_weight_the_stronger_the_shade(tokenizer):
    ids = ids_of("the cat sat on the mat", tokenizer)[:6]
    html = format_html(ids, [0.0, 2.0, 1.0, 1e-9, -0.6, -2.0], tokenizer)
    assert [kind for kind, _ in Page(html).spans] == ["zero", "up4", "up2", "up1", "down2", "down4"]
    for kind in ("zero", "up1", "up4", "down1", "down4"):
        assert f".weighted .{kind} " in WEIGHTED_CSS


def test_html_draws_arrows_on_demand(tokenizer):
    ids = ids_of("a\nb", tokenizer)
    assert Page(format_html(ids, [0] * len(ids), tokenizer)).text == "a\nb"
    assert Page(format_html(ids, [0] * len(ids), tokenizer, True)).text == "a↵\nb"


def test_a_first_space_that_decoding_drops_moves_no_colour(sentencepiece):
    the, cat, s, _, newline = range(5)
    assert format_marked([the, cat, s, the], [0, 1, 1, 0], sentencepiece) == "the{+ cats+} the"
    ids, weights = [the, the, the, cat, cat, the], [0, 1, 0, 1, 0, 1]
    assert format_marked(ids, weights, sentencepiece) == "the{+ the+} the{+ cat+} cat{+ the+}"
    marked = format_marked([the, newline, cat], [0, 1, 0], sentencepiece)
    assert marked == "the{+\n+} cat"


def datum_of(ids, **columns):
    ids = np.array(ids, np.int32)
    return Datum(tokens=ids[:-1], target_tokens=ids[1:], **columns)


def test_a_datum_is_shown_as_the_sequence_it_was_made_of(tokenizer):
    ids = ids_of("the cat sat", tokenizer)
    datum = datum_of(
        ids,
        weights=np.array([0.0, 0.0, 0.5, 0.5], np.float32),
        advantages=np.array([-1.0, -1.0, 0.0, 0.0], np.float32),
        logprobs=np.full(4, -0.5, np.float32),
    )
    assert colorize_example(datum, tokenizer) == f"{YELLOW}the cat{OFF}{GREEN} sat{OFF}"
    by_advantage = f"{YELLOW}the{OFF}{RED} cat{OFF}{YELLOW} sat{OFF}"
    assert colorize_example(datum, tokenizer, "advantages") == by_advantage
    by_logprob = f"{YELLOW}the{OFF}{RED} cat sat{OFF}"
    assert colorize_example(datum, tokenizer, key="logprobs") == by_logprob
    assert tokens_and_weights(datum).tokens.tolist() == ids
    assert tokens_and_weights(datum).weights.dtype == np.float32


def test_a_datum_without_weights_trains_on_every_target(tokenizer):
    datum = datum_of(ids_of("the cat sat", tokenizer))
    assert colorize_example(datum, tokenizer) == f"{YELLOW}the{OFF}{GREEN} cat sat{OFF}"


@pytest.mark.parametrize("show", [format_colorized, format_marked, format_html])
@pytest.mark.parametrize(
    ("tokens", "weights", "wanted"),
    [
        ([5, 6], [1.0], "each token needs a weight, got 2 tokens and weights of shape"),
        ([], [1.0], "each token needs a weight"),
        (np.array([5]), np.ones((1, 1)), "each token needs a weight"),
        ([5, 6], [1.0, float("nan")], "weights must be finite, got nan at token 1"),
        ([5], [float("-inf")], "got -inf at token 0"),
        ([5, TINY_VOCAB], [0.0, 0.0], f"token id {TINY_VOCAB} at position 1"),
        ([-1], [0.0], "token id -1 at position 0"),
        ([2**40], [0.0], "vocabulary"),
    ],
)
def test_what_cannot_be_shown_is_named(tokenizer, show, tokens, weights, wanted):
    with pytest.raises(DataError, match=re.escape(wanted)):
        show(tokens, weights, tokenizer)


def test_a_datum_that_cannot_be_shown_is_named(tokenizer):
    datum = datum_of([5, 6, 7])
    with pytest.raises(ConfigurationError, match="weights, advantages, logprobs; got 'mask'"):
        colorize_example(datum, tokenizer, key="mask")
    with pytest.raises(DataError, match="no advantages"):
        colorize_example(datum, tokenizer, key="advantages")
    soft = Datum(tokens=np.array([5, 6]), target_tokens=np.array([[6, 7], [7, 8]]))
    with pytest.raises(DataError, match=re.escape("(2, 2)")):
        colorize_example(soft, tokenizer)


def test_without_its_codes_it_is_the_decoded_text(tokenizer):
    @given(in_any_tokenizer())
    def check(pairs):
        ids, weights = apart(pairs)
        shown = format_colorized(ids, weights, tokenizer)
        text = visible(tokenizer.decode(ids))
        assert CODES.sub("", shown) == text
        arrows = format_colorized(ids, weights, tokenizer, True)
        assert CODES.sub("", arrows) == text.replace("\n", "↵\n")
        assert all(line.count("\x1b") % 2 == 0 for line in shown.split("\n"))

    check()


def test_html_is_well_formed_and_its_text_the_decoded_text(tokenizer):
    @given(in_any_tokenizer())
    def check(pairs):
        ids, weights = apart(pairs)
        page = Page(format_html(ids, weights, tokenizer))
        assert page.text == visible(tokenizer.decode(ids))
        assert set(page.tags) <= {"pre", "span"}

    check()


def test_any_heading_and_title_leaves_a_page_whole(tokenizer):
    @given(st.text(), st.text())
    @example("</h2><script>", "</title>$legend")
    def check(heading, title):
        section = ExampleSection(heading=heading, tokens=[5], weights=[1.0])
        page = Page(html_page([section] * 2, tokenizer, title=title))
        assert page.tags.count("section") == 2
        assert "script" not in page.tags

    check()


@pytest.mark.parametrize("name", ["tokenizer", "sentencepiece"])
def test_each_character_has_the_colour_of_the_token_that_completes_it(request, name):
    tokenizer = request.getfixturevalue(name)
    backend = tokenizer.backend_tokenizer

    def completed(ids, length):
        """How much of the whole text the first tokens alone already are."""
        whole = backend.decode(ids, skip_special_tokens=False)
        begun = backend.decode(ids[:length], skip_special_tokens=False)
        equal = [one == other for one, other in zip(begun, whole, strict=False)]
        return equal.index(False) if False in equal else len(equal)

    @given(in_any_tokenizer(len(tokenizer)).filter(bool))
    @example([(5, 0.0), (6, 1.0), (6, 1.0), (5, 0.0)])
    def check(pairs):
        ids, weights = apart(pairs)
        whole = backend.decode(ids, skip_special_tokens=False)
        reached = [*(completed(ids, length) for length in range(1, len(ids))), len(whole)]
        html = Page(format_html(ids, weights, tokenizer))
        assert html.text == visible(whole)
        # Byte fallback takes a character back where the next byte cannot follow it, and writes a
        # replacement for each of its bytes. Which token completed those nobody can say.
        is_final = all(before <= after for before, after in pairwise(reached))
        if is_final and visible(whole) == whole:
            signs = {"u": 1, "z": 0, "d": -1}
            found = [signs[kind[0]] for kind, text in html.spans for _ in text]
            numbers = np.diff([0, *reached])
            assert found == np.repeat(np.sign(weights), numbers).tolist()

    check()
