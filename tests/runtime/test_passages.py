"""Long texts are cut into passages that fit, in order, at the best boundary there is, and nothing is lost."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3edge.passages import split_passages


def test_a_text_that_fits_is_one_passage(encoder):
    assert split_passages("short text", encoder) == [(0, 10)]
    assert split_passages("", encoder) == [(0, 0)]


def test_paragraphs_stay_whole_where_they_fit(encoder):
    paragraphs = [f"Paragraph {i} has a few words in it." for i in range(12)]
    text = "\n\n".join(paragraphs)
    passages = [text[start:end] for start, end in split_passages(text, encoder, 64)]
    assert len(passages) > 1
    assert [part for passage in passages for part in passage.split("\n\n")] == paragraphs


def test_a_paragraph_too_long_alone_is_cut_at_a_sentence(encoder):
    text = "This is a sentence of eight plain words. " * 40
    passages = [text[start:end] for start, end in split_passages(text, encoder, 64)]
    assert all(passage.endswith("words.") for passage in passages)


def test_chinese_without_spaces_is_cut_at_its_full_stops(encoder):
    text = "这是一个用来测试分段的句子。" * 60
    assert all(text[start:end].endswith("。") for start, end in split_passages(text, encoder, 64))


def test_one_endless_word_is_cut_between_tokens(encoder):
    text = "ab3" * 3000
    passages = split_passages(text, encoder, 64)
    assert "".join(text[start:end] for start, end in passages) == text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.sampled_from(["word", "\n\n", "\n", ". ", "压缩文件。", " ", "ab3x9" * 9, "\u00a0", "é", "مرحبا"]),
        max_size=120,
    )
)
def test_passages_fit_and_nothing_but_white_space_is_lost(encoder, parts):
    text = "".join(parts)
    passages = split_passages(text, encoder, 32)
    kept = "".join("".join(text[start:end].split()) for start, end in passages)
    assert kept == "".join(text.split())
    assert all(left[1] <= right[0] for left, right in pairwise(passages))
    for start, end in passages:
        (tokens,) = encoder.tokenizer.tokenize([text[start:end]], prefix=encoder.info.passage_prefix, max_length=512)
        assert len(tokens.ids) <= 32


def test_a_limit_without_room_is_refused(encoder):
    with pytest.raises(ValueError, match="max_length must leave room"):
        split_passages("text", encoder, 3)


@pytest.mark.parametrize("limit", [16, 64, 128])
def test_text_without_spaces_fits_and_loses_nothing(encoder, limit):
    text = (
        "吾輩は猫である。名前はまだ無い。「どこで生れたか」とんと見当がつかぬ。（何でも）薄暗い《じめじめした》所で。"
        * 30
    )
    passages = split_passages(text, encoder, limit)
    assert "".join(text[start:end] for start, end in passages) == text
    parts = encoder.encode_passages([text[start:end] for start, end in passages], heads=["sparse"], max_length=limit)
    assert not parts.truncated.any()
