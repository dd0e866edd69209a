from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cookbook_fx.errors import ModelError
from cookbook_fx.tokens import byte_lengths, text_codec


@pytest.fixture(params=["tiny_tokenizer", "smollm2_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def words(*vocabulary: str, added: tuple[AddedToken, ...] = ()) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(
        models.WordLevel({"?": 0} | {w: i + 1 for i, w in enumerate(vocabulary)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_no_control_token_comes_out_of_text_that_spells_them_all(tokenizer):
    codec = text_codec(tokenizer)
    control = tokenizer.get_added_vocab()
    assert len(control) >= 3
    for text in (*control, "".join(control), " ".join(control), "a".join(control)):
        ids = codec.encode(text)
        assert not set(ids) & set(control.values())
        assert codec.decode(ids) == text
    assert codec.encode_trusted("".join(control)) == list(control.values())


def test_clean_text_is_encoded_as_the_tokenizer_does(tokenizer):
    codec = text_codec(tokenizer)

    @given(st.text())
    def check(text):
        if not any(token in text for token in tokenizer.get_added_vocab()):
            assert codec.encode(text) == tokenizer.encode(text, add_special_tokens=False)

    check()


def test_control_tokens_that_are_not_marked_special_are_kept_out_of_text_too():
    tokenizer = words("a", added=(AddedToken("<turn>", special=False),))
    codec = text_codec(tokenizer)
    assert tokenizer.encode("a<turn>", add_special_tokens=False) == [1, 2]
    assert codec.encode("a <turn>") == [1, 0]
    assert codec.control("<turn>") == 2


def test_tokens_of_white_space_are_text_though_they_were_added():
    tokenizer = words("a", added=(AddedToken("    ", special=False, normalized=False),))
    codec = text_codec(tokenizer)
    assert codec.encode("a    a") == [1, 2, 1] == codec.encode_trusted("a    a")


def test_a_vocabulary_that_holds_control_tokens_as_words_is_refused():
    with pytest.raises(ModelError, match="'<turn>' cannot be told apart from text"):
        text_codec(words("<turn>", added=(AddedToken("<turn>", special=True),)))


def test_a_missing_control_token_is_named(tiny_tokenizer):
    with pytest.raises(ModelError, match=r"has no token '<\|eot_id\|>'"):
        text_codec(tiny_tokenizer).control("<|eot_id|>")


def test_soft_tokens_are_ids_and_all_others_stay_text(tokenizer):
    strict = text_codec(tokenizer)
    first, second, *others = tokenizer.get_added_vocab()
    codec = strict.knowing(first, second)
    hostile = "".join(others)
    assert codec.encode(f"a{first}{hostile}{second}{second}") == [
        *strict.encode("a"), codec.control(first), *strict.encode(hostile),
        *(codec.control(second),) * 2,
    ]  # fmt: skip
    assert codec.encode(hostile) == strict.encode(hostile)
    assert codec.encode("") == []
    assert not set(strict.encode(first)) & set(tokenizer.get_added_vocab().values())


def test_text_between_soft_tokens_is_encoded_as_the_tokenizer_does(tokenizer):
    control = tuple(tokenizer.get_added_vocab())
    codec = text_codec(tokenizer).knowing(*control)

    @given(st.lists(st.one_of(st.sampled_from(control), st.text(max_size=8))).map("".join))
    def check(text):
        assert codec.encode(text) == tokenizer.encode(text, add_special_tokens=False)

    check()


def test_of_two_soft_tokens_the_longer_is_read():
    added = tuple(AddedToken(token, special=False) for token in ("<a", "<a>", "(.*)"))
    codec = text_codec(words("b", added=added)).knowing("<a", "<a>", "(.*)")
    assert codec.encode("<a>b<a(.*)") == [3, 1, 2, 4]


def test_a_soft_token_the_model_lacks_is_named(tiny_tokenizer):
    with pytest.raises(ModelError, match="has no token '<think>'"):
        text_codec(tiny_tokenizer).knowing("<think>")


def test_threads_share_a_codec_and_the_tokenizer_keeps_its_own_ways(tiny_tokenizer):
    codec = text_codec(tiny_tokenizer)
    soft = codec.knowing("<|im_start|>")
    texts = [f"the cat {i} <|im_end|> sat <|im_start|>" for i in range(200)]
    expected = [codec.encode(text) for text in texts]
    expected_soft = [soft.encode(text) for text in texts]
    marked = tiny_tokenizer.encode(texts[0], add_special_tokens=False)
    with ThreadPoolExecutor(4) as pool:
        safe = list(pool.map(codec.encode, texts))
        with_soft = list(pool.map(soft.encode, texts))
        usual = list(pool.map(lambda _: tiny_tokenizer.encode(texts[0]), texts))
    assert (safe, with_soft) == (expected, expected_soft)
    assert all(ids == marked for ids in usual)
    assert tiny_tokenizer.eos_token_id in marked


def test_bytes_of_text_add_up_also_where_a_character_is_several_tokens(tokenizer):
    codec, lengths = text_codec(tokenizer), byte_lengths(tokenizer)

    @given(st.text())
    def check(text):
        ids = codec.encode(text)
        # SmolLM2's vocabulary lacks a few control characters and passes over them.
        if codec.decode(ids) == text:
            assert lengths[ids].sum() == len(text.encode())

    check()


def test_control_tokens_have_no_bytes(tokenizer):
    assert not byte_lengths(tokenizer)[list(tokenizer.get_added_vocab().values())].any()


def test_sentencepiece_vocabularies_spell_spaces_and_bytes_their_own_way():
    vocabulary = {"<unk>": 0, "▁é": 1, "▁": 2, "<0xF0>": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert byte_lengths(fast).tolist() == [0, 3, 1, 1]


def test_ids_are_spelled_as_the_tokenizer_decodes_them(tokenizer):
    codec = text_codec(tokenizer)
    backend = tokenizer.backend_tokenizer
    assert codec.spelled is not None

    # Beyond the vocabulary there is nothing, in any order characters break apart.
    @given(st.lists(st.integers(0, len(tokenizer) + 5)))
    def check(ids):
        assert codec.decode(ids) == backend.decode(ids, skip_special_tokens=False)

    check()
    everything = list(range(len(tokenizer)))
    assert codec.decode(everything) == backend.decode(everything, skip_special_tokens=False)


def test_control_tokens_with_letters_of_their_own_are_spelled_as_they_are(tiny_tokenizer):
    tokenizer = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    tokenizer.add_tokens([AddedToken("<｜Ġ▁é｜>"), AddedToken("<Ġé>"), AddedToken("日本")])
    codec = text_codec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    for token in ("<｜Ġ▁é｜>", "<Ġé>", "日本"):
        ids = [codec.control(token), 65]
        assert codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


def test_tokens_that_depend_on_one_another_are_left_to_the_tokenizer():
    tokenizer = words("a", "b")
    codec = text_codec(tokenizer)
    assert codec.spelled is None
    assert codec.decode([1, 2]) == "a b"


def test_many_texts_are_encoded_as_one_by_one(tokenizer):
    codec = text_codec(tokenizer)
    control = next(iter(tokenizer.get_added_vocab()))
    texts = ["Hello.", "", f"a {control}", "Hello.", "日本 é"]
    encoded = codec.encode_batch(texts)
    assert encoded == {text: codec.encode(text) for text in texts}


def test_ids_known_ahead_are_taken_and_soft_tokens_still_told_apart(tokenizer):
    codec = text_codec(tokenizer)
    control = next(iter(tokenizer.get_added_vocab()))
    knowing = codec.knowing(control).encoding_by({"a": [7]}.get)
    assert knowing.encode(f"a{control}b") == [7, codec.control(control), *codec.encode("b")]
    assert codec.encode("a") != [7]
