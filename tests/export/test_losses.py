"""The scores and losses of training, against numbers worked out by hand and against m3edge.scoring."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from m3edge_export.training.losses import (
    EXCLUDED,
    Objective,
    Scores,
    contrastive_loss,
    dense_scores,
    distillation,
    distillation_loss,
    final_loss,
    info_nce,
    integrated_scores,
    lexical_scores,
    multi_vector_scores,
)

from m3edge import scoring
from m3edge.embeddings import SparseRows, TokenRows, offsets_of
from m3edge.scoring import Weights


def test_dense_scores_are_products() -> None:
    queries, passages = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    torch.testing.assert_close(dense_scores(queries, passages), torch.tensor([[0.0, 0.6, 1.0], [0.8, 1.0, 0.6]]))


def test_lexical_scores_take_the_largest_weight_of_a_repeated_token() -> None:
    query_ids, query_weights = torch.tensor([[7, 9, 7]]), torch.tensor([[0.5, 1.0, 2.0]])
    passage_ids = torch.tensor([[7, 7, 4], [9, 4, 1]])
    passage_weights = torch.tensor([[0.1, 0.3, 5.0], [0.5, 5.0, 0.0]])
    scores = lexical_scores(query_ids, query_weights, passage_ids, passage_weights)
    torch.testing.assert_close(scores, torch.tensor([[2.0 * 0.3, 1.0 * 0.5]]))


def test_multi_vector_scores_average_the_best_match_of_each_query_token() -> None:
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    passage = torch.tensor([[[0.6, 0.8], [0.8, 0.6], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    scores = multi_vector_scores(query, mask, passage, mask)
    torch.testing.assert_close(scores, torch.tensor([[(0.8 + 0.8) / 2]]))


def test_the_scores_are_those_of_the_runtime() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 12, (3, 6), generator=generator)
    weights = torch.rand(3, 6, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(3, 6, 8, generator=generator), dim=-1)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    rows = [scoring.sparse_row(ids[i, m].numpy(), weights[i, m].numpy(), np.array([])) for i, m in enumerate(mask)]
    flat = (np.concatenate(part) for part in zip(*rows, strict=True))
    sparse = SparseRows(*flat, offsets_of([len(row[0]) for row in rows]))
    tokens = TokenRows(vectors[mask].numpy(), offsets_of([6, 2, 4]))
    first = SparseRows(*rows[0], offsets_of([len(rows[0][0])]))
    lexical = lexical_scores(ids, weights * mask, ids, weights * mask)
    np.testing.assert_allclose(lexical[0].numpy(), scoring.lexical_scores(first, sparse), rtol=1e-5)
    late = multi_vector_scores(vectors, mask, vectors, mask)
    np.testing.assert_allclose(late[0].numpy(), scoring.maxsim(vectors[0].numpy(), tokens), rtol=1e-5)


def test_integrated_scores_are_the_weighted_sum() -> None:
    scores = Scores(torch.tensor([[0.9]]), torch.tensor([[0.5]]), torch.tensor([[0.7]]))
    torch.testing.assert_close(integrated_scores(scores, Weights(1.0, 0.3, 1.0)), torch.tensor([[0.9 + 0.15 + 0.7]]))


def test_info_nce_is_the_log_odds_of_the_right_passage() -> None:
    scores = torch.tensor([[0.8, 0.6], [0.1, 0.5]])
    expected = (math.log(1 + math.exp(-0.2 / 0.1)) + math.log(1 + math.exp(0.4 / 0.1))) / 2
    assert info_nce(scores, torch.tensor([0, 0]), 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_is_the_cross_entropy_of_the_softmaxes_and_spares_the_teacher() -> None:
    student = torch.tensor([[0.3, 0.1]], requires_grad=True)
    teacher = torch.tensor([[0.2, 0.4]], requires_grad=True)
    loss = distillation(student, teacher, 0.1)
    right = 1 / (1 + math.exp(2.0))  # softmax(2, 4)[0]
    expected = -(right * math.log(1 / (1 + math.exp(-2.0))) + (1 - right) * math.log(1 / (1 + math.exp(2.0))))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_sums_of_the_losses_have_the_papers_weights() -> None:
    """One query, two passages: every loss depends on the difference x of their scores alone."""
    scores = Scores(torch.tensor([[0.3, 0.1]]), torch.tensor([[0.5, 0.9]]), torch.tensor([[0.6, 0.2]]))
    target, objective = torch.tensor([0]), Objective(temperature=0.1)

    def right(x: float) -> float:  # the first passage's share of the softmax
        return 1 / (1 + math.exp(-x / 0.1))

    differences = {"dense": 0.2, "sparse": -0.4, "tokens": 0.4}
    teacher = 1.0 * 0.2 + 0.3 * -0.4 + 1.0 * 0.4  # s_inter, with w = (1, 0.3, 1)
    parts = {name: -math.log(right(x)) for name, x in differences.items()}
    contrastive = (1.0 * parts["dense"] + 0.1 * parts["sparse"] + 1.0 * parts["tokens"] - math.log(right(teacher))) / 4
    distilled = {
        name: -right(teacher) * math.log(right(x)) - right(-teacher) * math.log(right(-x))
        for name, x in differences.items()
    }
    self_distillation = (1.0 * distilled["dense"] + 0.1 * distilled["sparse"] + 1.0 * distilled["tokens"]) / 3
    assert contrastive_loss(scores, target, objective).item() == pytest.approx(contrastive, rel=1e-5)
    assert distillation_loss(scores, objective).item() == pytest.approx(self_distillation, rel=1e-5)
    assert final_loss(scores, target, objective).item() == pytest.approx(
        (contrastive + self_distillation) / 2, rel=1e-5
    )
    without = Objective(temperature=0.1, distillation=False)
    assert final_loss(scores, target, without).item() == pytest.approx(contrastive, rel=1e-5)


def test_an_excluded_passage_counts_for_nothing() -> None:
    scores, teacher = torch.tensor([[0.8, EXCLUDED, 0.6]]), torch.tensor([[0.5, EXCLUDED, 0.6]])
    target = torch.tensor([0])
    torch.testing.assert_close(info_nce(scores, target, 0.02), info_nce(scores[:, [0, 2]], target, 0.02))
    torch.testing.assert_close(
        distillation(scores, teacher, 0.02), distillation(scores[:, [0, 2]], teacher[:, [0, 2]], 0.02)
    )
