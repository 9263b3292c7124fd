"""The scores and losses of M3-Embedding (arXiv 2402.03216v4, sections 3.2 and 3.3) on batches, differentiable.

The scores are those of m3edge.scoring, for every query with every passage at once. Equations are numbered as in the
paper, version 4; the three scores and the final loss stand in its text without a number.
"""

from __future__ import annotations

from dataclasses import dataclass
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


_PAPER_WEIGHTS = Weights(1.0, 0.3, 1.0)
_PAPER_SHARES = Weights(1.0, 0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The constants of the final loss; the defaults are the paper's."""

    weights: Weights = _PAPER_WEIGHTS  # w: of the parts in the integrated score
    shares: Weights = _PAPER_SHARES  # λ: of the parts' losses
    temperature: float = 0.02  # τ
    distillation: bool = True  # whether the parts also learn from the integrated score; False leaves L alone

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


def dense_scores(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """Section 3.2, dense retrieval: s_dense = ⟨e_q, e_p⟩; queries, passages: float32 [n, dim]."""
    return queries @ passages.T


def lexical_scores(
    query_ids: torch.Tensor, query_weights: torch.Tensor, passage_ids: torch.Tensor, passage_weights: torch.Tensor
) -> torch.Tensor:
    """Section 3.2, lexical retrieval: s_lex = Σ_{t ∈ q∩p} w_qt · w_pt; w_t is the largest weight among t's positions.

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
    """Section 3.2, multi-vector retrieval: s_mul = mean over the query's tokens i of max_j ⟨E_q[i], E_p[j]⟩.

    queries, passages: float32 [n, length, dim], unit rows; masks: bool [n, length], True on tokens that count
    """
    (n_queries, query_length, dim), (n_passages, passage_length, _) = queries.shape, passages.shape
    similarities = queries.reshape(-1, dim) @ passages.reshape(-1, dim).T
    similarities = similarities.view(n_queries, query_length, n_passages, passage_length)
    best = similarities.masked_fill(~passage_mask, -torch.inf).amax(dim=-1)
    return (best * query_mask.unsqueeze(-1)).sum(dim=1) / query_mask.sum(dim=1, keepdim=True)


def integrated_scores(scores: Scores, weights: Weights) -> torch.Tensor:
    """Eq. (3): s_inter = w1 · s_dense + w2 · s_lex + w3 · s_mul; float32 [queries, passages]."""
    return weights.dense * scores.dense + weights.sparse * scores.sparse + weights.tokens * scores.tokens


def info_nce(scores: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. (2): L_s = −log( exp(s(q, p*) / τ) / Σ_p exp(s(q, p) / τ) ), the mean over the queries.

    scores: float32 [queries, passages], EXCLUDED where a passage is no negative for a query
    targets: int64 [queries], which passage answers it
    """
    return cross_entropy(scores / temperature, targets)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. (5): L'_s = −softmax(s_inter / τ) · log softmax(s / τ), the mean over the queries.

    No gradient reaches the teacher.

    student, teacher: float32 [queries, passages], EXCLUDED in the same places
    """
    return cross_entropy(student / temperature, torch.softmax(teacher.detach() / temperature, dim=-1))


def contrastive_loss(scores: Scores, targets: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Eq. (4): L = (λ1 · L_dense + λ2 · L_lex + λ3 · L_mul + L_inter) / 4."""
    teacher = integrated_scores(scores, objective.weights)
    losses = [info_nce(part, targets, objective.temperature) for part in scores]
    return (_weighted(losses, objective.shares) + info_nce(teacher, targets, objective.temperature)) / 4


def distillation_loss(scores: Scores, objective: Objective) -> torch.Tensor:
    """Eq. (6): L' = (λ1 · L'_dense + λ2 · L'_lex + λ3 · L'_mul) / 3."""
    teacher = integrated_scores(scores, objective.weights)
    losses = [distillation(part, teacher, objective.temperature) for part in scores]
    return _weighted(losses, objective.shares) / 3


def final_loss(scores: Scores, targets: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Section 3.3, its last formula: L_final = (L + L') / 2; L alone where the objective has no distillation."""
    contrastive = contrastive_loss(scores, targets, objective)
    return (contrastive + distillation_loss(scores, objective)) / 2 if objective.distillation else contrastive


def _weighted(losses: list[torch.Tensor], shares: Weights) -> torch.Tensor:
    return torch.stack([share * loss for share, loss in zip(shares, losses, strict=True)]).sum()


def _lexical_rows(places: torch.Tensor, weights: torch.Tensor, n_tokens: int) -> torch.Tensor:
    rows = weights.new_zeros(len(weights), n_tokens)
    return rows.scatter_reduce(1, places, weights, reduce="amax")
