"""MCLS: further `<s>` among a long text's tokens, and a dense vector that is the mean of all their states."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from m3edge_export.checkpoint import load_checkpoint
from m3edge_export.export import export_onnx

from m3edge import Encoder, Index

INTERVAL = 8
SHORT = "the file"
LONG = "the file 0123456789 abcdefghij zip unzip"
TOO_LONG = "abcdefgh " * 20
CLS, EOS = 0, 2


@pytest.fixture(scope="module")
def folder(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcls") / "tiny-fp32"
    export_onnx(tiny_source, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder, "cpu", mcls_interval=INTERVAL)


def spread(ids: list[int], max_length: int) -> list[int]:
    """A textbook loop: `<s>` and the next seven tokens, again and again, then `</s>`."""
    body, result = ids[1:-1], []
    while body and len(result) < max_length - 2:
        result += [CLS, *body[: INTERVAL - 1]]
        body = body[INTERVAL - 1 :]
    return [*result[: max_length - 1], EOS]


@pytest.mark.parametrize("text", [SHORT, LONG, TOO_LONG])
def test_the_dense_vector_is_the_mean_of_the_cls_states_in_pytorch(encoder, tiny_source, text):
    (plain,) = encoder.tokenizer.tokenize([text], prefix="", max_length=10_000)
    ids = torch.tensor([spread(plain.ids.tolist(), encoder.info.max_length)])
    model = load_checkpoint(tiny_source).model
    with torch.no_grad():
        hidden = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0]
        tokens = torch.nn.functional.normalize(model.token_head(hidden), dim=-1)
    dense = hidden[ids[0] == CLS].mean(dim=0).numpy()
    embeddings = encoder.encode(text)
    np.testing.assert_allclose(embeddings.dense[0], dense / np.linalg.norm(dense), atol=1e-5)
    np.testing.assert_allclose(embeddings.tokens.vectors, tokens[ids[0] != CLS].numpy(), atol=1e-5)
    assert bool(embeddings.truncated[0]) == (text == TOO_LONG)


def test_a_text_is_the_same_alone_and_in_a_padded_batch(encoder):
    together = encoder.encode([SHORT, LONG, TOO_LONG], batch_tokens=10_000)
    for i, text in enumerate([SHORT, LONG, TOO_LONG]):
        alone = encoder.encode(text)
        np.testing.assert_allclose(together.dense[i], alone.dense[0], atol=1e-5)
        np.testing.assert_allclose(together[i].tokens.vectors, alone.tokens.vectors, atol=1e-5)


def test_texts_up_to_the_interval_are_as_without(encoder, folder):
    without = Encoder.load(folder, "cpu")
    np.testing.assert_array_equal(encoder.encode(SHORT).dense, without.encode(SHORT).dense)
    assert abs(encoder.encode(LONG).dense - without.encode(LONG).dense).max() > 1e-3


def test_an_index_explains_a_hit_with_the_same_tokens(encoder, tmp_path):
    with Index.create(tmp_path / "index", encoder) as index:
        index.add([{"id": "long", "text": LONG}])
        (hit,) = index.search("zip", explain=True)
    assert hit.explanation is not None
    assert "<s>" not in {match.passage_token for match in hit.explanation.matches}


@pytest.mark.parametrize(("interval", "error"), [(1, ValueError), (0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_wrong_interval_is_named(folder, interval, error):
    with pytest.raises(error, match="mcls_interval must be"):
        Encoder.load(folder, "cpu", mcls_interval=interval)


def test_models_that_take_the_mean_and_older_exports_are_refused(encoder):
    for change, message in (({"pooling": "mean"}, "takes the mean"), ({"mcls": False}, "newer export")):
        info = dataclasses.replace(encoder.info, **change)
        with pytest.raises(ValueError, match=message):
            Encoder(info, encoder.session, encoder.tokenizer, mcls_interval=INTERVAL)
