"""The scores and losses of M3-Embedding (arXiv 2402.03216, sections 3.2 and 3.3) on batches, differentiable.

The scores are those of m3edge.scoring, for every query with every passage at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from m3edge.scoring import Weights

EXCLUDED = -1e4  # the score of a passage that is no negative for a query: finite, so that 0 · log softmax stays 0


class Scores(NamedTuple):
    """The parts' scores of every query with every passage, each float32 [queries, passages]."""

    dense: torch.Tensor
    sparse: torch.Tensor
    tokens: torch.Tensor


def dense_scores(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """s_dense = ⟨e_q, e_p⟩; queries, passages: float32 [n, dim]."""
    return queries @ passages.T


def lexical_scores(
    query_ids: torch.Tensor, query_weights: torch.Tensor, passage_ids: torch.Tensor, passage_weights: torch.Tensor
) -> torch.Tensor:
    """s_lex = Σ_{t ∈ q∩p} w_qt · w_pt, where w_t is the largest weight among the positions of token t.

    ids: int64 [n, length]; weights: float32 [n, length], at least 0, and 0 where a position does not count
    """
    distinct, places = torch.unique(torch.cat([query_ids.flatten(), passage_ids.flatten()]), return_inverse=True)
    query_places, passage_places = places.split([query_ids.numel(), passage_ids.numel()])
    queries = _lexical_rows(query_places.view_as(query_ids), query_weights, len(distinct))
    passages = _lexical_rows(passage_places.view_as(passage_ids), passage_weights, len(distinct))
    return queries @ passages.T


def multi_vector_scores(
    queries: torch.Tensor, query_mask: torch.Tensor, passages: torch.Tensor, passage_mask: torch.Tensor
) -> torch.Tensor:
    """s_mul = mean over the query's tokens i of max_j ⟨E_q[i], E_p[j]⟩.

    queries, passages: float32 [n, length, dim], unit rows; masks: bool [n, length], True on tokens that count
    """
    (n_queries, query_length, dim), (n_passages, passage_length, _) = queries.shape, passages.shape
    similarities = queries.reshape(-1, dim) @ passages.reshape(-1, dim).T
    similarities = similarities.view(n_queries, query_length, n_passages, passage_length)
    best = similarities.masked_fill(~passage_mask, -torch.inf).amax(dim=-1)
    return (best * query_mask.unsqueeze(-1)).sum(dim=1) / query_mask.sum(dim=1, keepdim=True)


def integrated_scores(scores: Scores, weights: Weights) -> torch.Tensor:
    """s_inter = w1 · s_dense + w2 · s_lex + w3 · s_mul."""
    return weights.dense * scores.dense + weights.sparse * scores.sparse + weights.tokens * scores.tokens


def info_nce(scores: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """L = −log( exp(s(q, p*) / τ) / Σ_p exp(s(q, p) / τ) ), the mean over the queries.

    scores: float32 [queries, passages], EXCLUDED where a passage is no negative for a query
    targets: int64 [queries], which passage answers it
    """
    return cross_entropy(scores / temperature, targets)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """L' = −softmax(s_inter / τ) · log softmax(s / τ), the mean over the queries; no gradient reaches the teacher.

    student, teacher: float32 [queries, passages], EXCLUDED in the same places
    """
    return cross_entropy(student / temperature, torch.softmax(teacher.detach() / temperature, dim=-1))


def _lexical_rows(places: torch.Tensor, weights: torch.Tensor, n_tokens: int) -> torch.Tensor:
    rows = weights.new_zeros(len(weights), n_tokens)
    return rows.scatter_reduce(1, places, weights, reduce="amax")
