"""A mapped vocabulary gives the very ids that Hugging Face's tokenizers gives, and saves parsing it."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from m3edge import Encoder, FormatError, kernels
from m3edge.model_folder import TOKENIZER, VOCABULARY
from m3edge.tokenization import Tokenizer
from m3edge.vocabulary import read_vocabulary, write_vocabulary

if kernels.Unigram is None:
    pytest.skip("there are no native kernels here, and without them tokenizer.json is parsed", allow_module_level=True)

AWKWARD = [
    "", " ", "a", "\x00", "\n\n", " two  spaces ", "～", "ﬁ", "à́", "👩‍👩‍👧 🇨🇭", "▁a▁b", "\u2028x\u1680y\x1cz",
    "x" * 3000, "漢" * 500, "\U0010ffff" * 3, "\u200b", "naïve ﬁle", "\ud800",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(mini_int8: Path) -> Path:
    return mini_int8


@pytest.fixture(scope="module")
def parsed(folder: Path) -> Tokenizer:
    return Tokenizer(folder / TOKENIZER)


@pytest.fixture
def mapped(folder: Path) -> Tokenizer:
    return Tokenizer(folder / TOKENIZER, folder / VOCABULARY)


def tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [text.ids.tolist() for text in tokenizer.tokenize(texts, prefix="query: ", max_length=512)]


def test_ids_are_the_same_in_twelve_languages(mapped, parsed, beir):
    for language in ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"):
        lines = (beir(f"xquad-{language}") / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:20]
        texts = [json.loads(line)["text"] for line in lines]
        assert tokens(mapped, texts) == tokens(parsed, texts)
    assert mapped._parsed is None


def test_ids_are_the_same_of_code_and_of_what_is_awkward(mapped, parsed):
    texts = [*AWKWARD, inspect.getsource(typing), inspect.getsource(inspect)]
    for text in texts:
        assert tokens(mapped, [text]) == tokens(parsed, [text])
    assert mapped._parsed is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_ids_are_the_same_of_any_text(mapped, parsed, text):
    assert tokens(mapped, [text]) == tokens(parsed, [text])


@pytest.mark.parametrize("text", ["<s>", "the <mask> of</s> zorro", "<unk><pad>"])
def test_a_text_that_names_a_special_token_is_left_to_hugging_face(mapped, parsed, text):
    assert tokens(mapped, [text, "plain"]) == tokens(parsed, [text, "plain"])
    assert mapped._parsed is not None


def test_special_tokens_of_normalised_text_are_found_there(folder, tmp_path):
    """BGE-M3's <mask> may be one: it is looked for in what a text becomes, where a wide ＜ is a plain one."""
    content = json.loads((folder / TOKENIZER).read_text())
    for token in content["added_tokens"]:
        if token["content"] == "<mask>":
            token["normalized"] = True
    theirs = HuggingFaceTokenizer.from_str(json.dumps(content))
    theirs.add_tokens([AddedToken("ﬁne", normalized=True)])
    theirs.save(str(tmp_path / TOKENIZER))
    assert write_vocabulary(tmp_path / VOCABULARY, theirs)
    ours = Tokenizer(tmp_path / TOKENIZER, tmp_path / VOCABULARY)
    for text in AWKWARD[:-1]:
        assert ours._ids([text])[0].tolist() == theirs.encode(text).ids, text
    assert ours._parsed is None
    for text in ("a ＜mask＞ b", "the <mask>", "a fine day", "a ﬁne day"):
        assert ours._ids([text])[0].tolist() == theirs.encode(text).ids, text
    assert ours._parsed is not None


def test_tokens_and_spans_are_the_same(mapped, parsed):
    assert [mapped.token(i) for i in (0, 5, 250_001, 999_999)] == [parsed.token(i) for i in (0, 5, 250_001, 999_999)]
    np.testing.assert_array_equal(mapped.spans("A small file."), parsed.spans("A small file."))


def test_an_encoder_does_without_parsing_the_tokenizer(folder):
    encoder = Encoder.load(folder, "cpu")
    encoder.encode_queries("How do I compress a file?")
    assert encoder.tokenizer._parsed is None


def test_a_folder_from_before_there_was_such_a_file_is_read_as_before(folder, tmp_path):
    tokenizer = Tokenizer(folder / TOKENIZER, None)
    assert tokenizer._parsed is not None


def test_without_native_kernels_tokenizer_json_is_parsed(folder, monkeypatch):
    monkeypatch.setattr("m3edge.tokenization.Unigram", None)
    assert Tokenizer(folder / TOKENIZER, folder / VOCABULARY)._parsed is not None


def test_ties_unknown_characters_and_repeated_tokens_fall_as_in_hugging_face(tmp_path):
    pieces = [
        ("<unk>", 0.0),
        ("a", -1.0),
        ("aa", -2.0),
        ("b", -1.5),
        ("ab", -2.5),
        ("aa", -3.0),
        ("é", -4.0),
        ("xy", -1.0),
    ]
    theirs = HuggingFaceTokenizer(models.Unigram(pieces, unk_id=0))
    theirs.decoder = decoders.Metaspace()
    for pre_tokenizer in (None, pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")):
        if pre_tokenizer is not None:
            theirs.pre_tokenizer = pre_tokenizer
        theirs.save(str(tmp_path / TOKENIZER))
        assert write_vocabulary(tmp_path / VOCABULARY, theirs)
        ours = Tokenizer(tmp_path / TOKENIZER, tmp_path / VOCABULARY)
        for text in ("", "aaaa", "aaab", "ab ba", "xay", "xxaxx", "é x é", "aé日本b", "xyx"):
            assert ours._ids([text])[0].tolist() == theirs.encode(text).ids, (pre_tokenizer, text)
        assert ours._parsed is None


def test_a_tokenizer_of_another_kind_has_no_such_file(tmp_path):
    theirs = HuggingFaceTokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert not write_vocabulary(tmp_path / VOCABULARY, theirs)
    assert not (tmp_path / VOCABULARY).exists()


def test_a_file_of_something_else_is_refused_by_name(folder, tmp_path):
    path = tmp_path / VOCABULARY
    path.write_bytes(b"something else entirely")
    with pytest.raises(FormatError, match=f"{VOCABULARY}: not a vocabulary"):
        read_vocabulary(path)
    whole = (folder / VOCABULARY).read_bytes()
    for content in (whole[:-1], whole + b"x", whole[:16] + b"x" + whole[17:]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"{VOCABULARY}: not a vocabulary"):
            read_vocabulary(path)
    length = int.from_bytes(whole[8:16], "little")
    description = json.loads(whole[16 : 16 + length])
    for change in ({"n_tokens": "9"}, {"n_nodes": -1}, {"n_nodes": 2**70}, {"special": [5]}, {"before": [-1]},
                   {"after": ["a"]}, {"unknown_id": None}, {"settings": []}, {"more": 1}):  # fmt: skip
        text = json.dumps({**description, **change}).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(whole[:8] + len(text).to_bytes(8, "little") + text + whole[16 + length :])
        with pytest.raises(FormatError, match=f"{VOCABULARY}: not a vocabulary"):
            read_vocabulary(path)
    path.write_bytes(whole[:-1_000_000] + b"\x7f" * 100_000 + whole[-900_000:])
    with pytest.raises(FormatError, match=f"{VOCABULARY}: damaged"):
        Tokenizer(folder / TOKENIZER, path)
