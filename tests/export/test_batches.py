"""A training step's arithmetic: its batches, its scores against the runtime's, and gradient caching."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from m3edge_export.checkpoint import load_checkpoint
from m3edge_export.model import M3Model
from m3edge_export.training.batching import IndexedPair, plan_epoch
from m3edge_export.training.losses import EXCLUDED, Objective, final_loss
from m3edge_export.training.passes import CachedPass, LivePass
from m3edge_export.training.scores import batch_scores, make_batch
from m3edge_export.training.states import encode_states, live_states, take

from m3edge.tokenization import TokenizedText, Tokenizer

QUERIES = ["the file", "abc", "hello 12", "ing", "zz top"]
PASSAGES = ["the file thing", "a much longer text, 0123456789 and the file", "x", "hello there 12", "ing ing ing", "q"]
PAIRS = [IndexedPair(i, i, "a") for i in range(5)]


@pytest.fixture
def model(tiny_source: Path) -> M3Model:
    return load_checkpoint(tiny_source, attention="sdpa").model


def tokenized(tiny_source: Path, texts: list[str], prefix: str = "") -> list[TokenizedText]:
    return Tokenizer(tiny_source / "tokenizer.json").tokenize(texts, prefix=prefix, max_length=64)


def test_a_batch_has_one_source_similar_lengths_and_all_queries_of_its_passages() -> None:
    pairs = [IndexedPair(3 * i + j, i, "even" if i % 2 == 0 else "odd") for i in range(100) for j in range(3)]
    lengths = [10 + 7 * i % 90 for i in range(100)]
    batches = plan_epoch(pairs, lengths, batch=16, batch_tokens=400, seed="0")
    assert sorted(pair for batch in batches for pair in batch) == sorted(pairs)
    for batch in batches:
        passages = {pair.passage for pair in batch}
        assert len({pair.source for pair in batch}) == 1
        assert len(batch) == 3 * len(passages)
        assert len(passages) <= 16
        assert len(passages) * max(lengths[passage] for passage in passages) <= 400
    kept = sum(lengths[passage] for batch in batches for passage in {pair.passage for pair in batch})
    padded = sum(
        len({pair.passage for pair in batch}) * max(lengths[pair.passage] for pair in batch) for batch in batches
    )
    assert kept / padded > 0.85  # one batch after the other in random order: .6
    assert batches == plan_epoch(pairs, lengths, batch=16, batch_tokens=400, seed="0")
    assert batches != plan_epoch(pairs, lengths, batch=16, batch_tokens=400, seed="1")


def test_other_right_passages_are_no_negatives_and_mined_ones_are_for_everybody() -> None:
    batch = make_batch(
        [IndexedPair(0, 7, "a"), IndexedPair(1, 8, "a"), IndexedPair(0, 8, "a")],
        {0: frozenset({7, 8}), 1: frozenset({8})},
        {1: [5, 7]},
    )
    assert batch.queries == [0, 1, 0]
    assert batch.passages == [7, 8, 5]
    assert batch.targets.tolist() == [0, 1, 1]
    assert batch.excluded.tolist() == [[False, True, False], [False, False, False], [True, False, False]]


def test_live_states_are_those_of_the_frozen_encoder(tiny_source: Path, model: M3Model) -> None:
    texts = tokenized(tiny_source, PASSAGES, prefix="the ")
    with torch.no_grad():
        live = live_states(model, texts, 20)
    frozen = take(encode_states(model, texts), torch.arange(len(texts)))
    assert torch.equal(live.ids * live.mask, frozen.ids * frozen.mask)
    assert torch.equal(live.mask, frozen.mask)
    torch.testing.assert_close(live.dense, frozen.dense)
    torch.testing.assert_close(live.hidden[live.mask], frozen.hidden[frozen.mask], atol=2e-3, rtol=0)


def test_cached_gradients_are_those_of_one_large_batch(tiny_source: Path, model: M3Model) -> None:
    queries, passages = tokenized(tiny_source, QUERIES), tokenized(tiny_source, PASSAGES)
    batch = make_batch(PAIRS, {i: frozenset({i}) for i in range(5)}, {0: [5]})
    dropped = torch.tensor([0, 1, 2, 3])

    def gradients(way: LivePass) -> dict[str, torch.Tensor]:
        model.zero_grad()
        states = way.forward(batch.queries, batch.passages)
        scores = batch_scores(model, *states, batch.excluded, dropped)
        way.backward(final_loss(scores, batch.targets, Objective(temperature=0.5)))
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients(LivePass(model, queries, passages, sub_batch_tokens=10_000))
    assert set(whole) == {name for name, _ in model.named_parameters()}
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-2
    for way in (CachedPass(model, queries, passages, 16), LivePass(model, queries, passages, 16)):
        parts = gradients(way)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=0, msg=name)


def test_excluded_scores_take_no_part(tiny_source: Path, model: M3Model) -> None:
    texts = [live_states(model, tokenized(tiny_source, side), 1000) for side in (QUERIES, PASSAGES)]
    excluded = torch.zeros(5, 6, dtype=torch.bool)
    excluded[2, 3] = True
    scores = batch_scores(model, texts[0], texts[1], excluded, torch.tensor([0, 1, 2, 3]))
    assert all(part[2, 3] == EXCLUDED for part in scores)
    assert all((part[~excluded] > -10).all() for part in scores)
