"""Fusion weights for one's own judged queries: which weights and which lexical score rank an index's documents best,
and whether that is more than chance.

All choices are made from the same candidates' scores, which are computed once. The gain is judged by cross-validation:
a query's value under "tuned" comes from weights that were chosen without it. A paired permutation test and a bootstrap
interval (scipy) then compare these values with the default's, query by query.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m3edge.corpus import Candidates, IndexedCorpus, query_parts
from m3edge.embeddings import Embeddings
from m3edge.errors import FormatError
from m3edge.evaluation import BeirDataset, import_ir_measures, parse_metric
from m3edge.index import Index
from m3edge.index.sparse import LEXICAL
from m3edge.model_folder import PRESETS
from m3edge.progress import progress_bar
from m3edge.scoring import Weights, hybrid_scores, resolve_weights

_STEPS = 10  # the grid: weights in tenths that sum to 1
_CANDIDATES = 100  # what Index.search takes by default
_REPEATS = 10  # of the division into folds
_RESAMPLES = 9999
_LEVEL = 0.05
_ROUNDING = 1e-9  # values as close as this are equal: a sum's last digits are at 1e-16, one rank of 100 is 1e-4


class Choice(NamedTuple):
    """One way to search: what `Index.search` takes as weights and lexical."""

    weights: Weights
    lexical: str


class Scored(NamedTuple):
    """A choice and the mean of the metric over all queries."""

    choice: Choice
    value: float


class Tuning(NamedTuple):
    """What tuning found.

    metric, queries: what was counted on how many queries
    baseline: the default, weights "general" with lexical "m3"
    best: the choice with the best mean over all queries; its value flatters, for it was chosen on them
    by_lexical: the best choice of each kind of lexical score
    validated: mean of the values under weights chosen without the query
    gain: validated minus the baseline; low, high: its 95 % interval; p_value: of a gain of this size by chance alone
    """

    metric: str
    queries: int
    baseline: Scored
    best: Scored
    by_lexical: tuple[Scored, ...]
    validated: float
    gain: float
    low: float
    high: float
    p_value: float

    @property
    def beyond_noise(self) -> bool:
        """Whether another choice than the default is best, the gain shows in four decimals, as `m3edge tune` prints it,
        and it would be this large by chance in fewer than 5 of 100 cases."""
        return self.best.choice != self.baseline.choice and round(self.gain, 4) > 0 and self.p_value < _LEVEL

    def to_json(self) -> dict[str, Any]:
        def scored(item: Scored) -> dict[str, Any]:
            return {"weights": list(item.choice.weights), "lexical": item.choice.lexical, "value": item.value}

        return {
            **self._asdict(),
            "baseline": scored(self.baseline),
            "best": scored(self.best),
            "by_lexical": [scored(item) for item in self.by_lexical],
            "beyond_noise": self.beyond_noise,
        }


def tune(
    index: Index,
    dataset: BeirDataset,
    *,
    lexical: Sequence[str] = LEXICAL,
    metric: str = "nDCG@10",
    folds: int = 5,
    seed: int = 0,
    progress: bool | None = False,
) -> Tuning:
    """Try weights on a grid, with every kind of lexical score, on judged queries.

    index:   open, with its encoder; its ids (or, for passages of `m3edge index`, the documents') are the judgements'
    lexical: the kinds that compete
    metric:  in ir-measures' spelling, such as nDCG@10, R@100, RR@10, P@3 or AP, with a cut-off of at most 100
    folds:   parts into which the queries are divided; one is judged by the weights that the others choose
    Raises ValueError for another metric and for fewer queries than folds, FormatError when no judged document is in the
    index.
    """
    measure = parse_metric(metric)
    _import_stats()  # rather now than after all is scored
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    if len(dataset.queries) < folds:
        raise ValueError(f"dataset must have at least as many queries as folds, {folds}, got {len(dataset.queries)}")
    unknown = [kind for kind in lexical if kind not in LEXICAL]
    if unknown or not lexical:
        raise ValueError(f"lexical must be some of {', '.join(LEXICAL)}, got {list(lexical)}")
    corpus = IndexedCorpus(index)
    judged = {document for documents in dataset.qrels.values() for document in documents}
    if judged.isdisjoint(corpus.documents):
        raise FormatError(
            f"{index.folder}: holds none of the {len(judged)} documents that are judged, such as {min(judged)!r}; "
            "build the index from the corpus.jsonl that belongs to the judgements"
        )
    assert index.encoder is not None
    presets = index.encoder.info.presets
    queries = index.encoder.encode_queries(list(dataset.queries.values()), progress=progress)
    choices = [Choice(weights, kind) for kind in lexical for weights in _grid(presets)]
    baseline = Choice(resolve_weights("general", presets), "m3")
    if baseline not in choices:  # "m3" does not compete, and is still what the others are compared with
        choices.append(baseline)
    values = _values(corpus, queries, dataset, choices, measure, progress)
    means = values.mean(axis=1)
    competing = np.array([choice.lexical in lexical for choice in choices])
    before = values[choices.index(baseline)]
    after = _cross_validated(values[competing], folds, seed)
    after = np.where(np.abs(after - before) < _ROUNDING, before, after)  # or last digits count as gains
    low, high, p_value = _compare(after - before, seed)
    best_of = {kind: _best(choices, means, [c.lexical == kind for c in choices]) for kind in lexical}
    best = _best(choices, means, competing)
    return Tuning(
        metric,
        len(dataset.queries),
        Scored(baseline, float(before.mean())),
        best,
        tuple(best_of.values()),
        float(after.mean()),
        float((after - before).mean()),
        low,
        high,
        p_value,
    )


def _grid(presets: Mapping[str, Sequence[float]] = PRESETS) -> Iterator[Weights]:
    """The presets, then all weights in tenths that sum to 1."""
    yield from dict.fromkeys(resolve_weights(name, presets) for name in presets)
    for dense in range(_STEPS, -1, -1):
        for sparse in range(_STEPS - dense + 1):
            tokens = _STEPS - dense - sparse
            yield Weights(dense / _STEPS, sparse / _STEPS, tokens / _STEPS)


def _values(
    corpus: IndexedCorpus,
    queries: Embeddings,
    dataset: BeirDataset,
    choices: Sequence[Choice],
    measure: Any,
    progress: bool | None,
) -> np.ndarray:
    """The measure of every choice for every query: float64 [n_choices, n_queries]."""
    depth = measure.params.get("cutoff") or 100
    row_of = {query_id: i for i, query_id in enumerate(dataset.queries)}
    evaluator = import_ir_measures().evaluator([measure], dataset.qrels)  # reads the judgements once
    values = np.zeros((len(choices), len(row_of)))
    with progress_bar(len(row_of) * len(dict.fromkeys(c.lexical for c in choices)), "query", "tuning", progress) as bar:
        for kind in dict.fromkeys(choice.lexical for choice in choices):
            own = [i for i, choice in enumerate(choices) if choice.lexical == kind]
            runs: list[dict[str, dict[str, float]]] = [{} for _ in own]
            for query_id, i in row_of.items():
                found = corpus.candidates(*query_parts(queries[i]), n=_CANDIDATES, lexical=kind)
                names = [corpus.documents[position] for position in found.positions.tolist()]
                for run, number in zip(runs, own, strict=True):
                    run[query_id] = _ranked(found, names, choices[number].weights, depth)
                bar.update()
            for run, number in zip(runs, own, strict=True):
                for result in evaluator.iter_calc(run):
                    values[number, row_of[result.query_id]] = result.value
    return values


def _ranked(found: Candidates, names: Sequence[str], weights: Weights, depth: int) -> dict[str, float]:
    """The best documents and their scores as a search with these weights would rank them; of a document's passages the
    best counts."""
    scores = hybrid_scores(found.dense, found.sparse, found.tokens, weights)
    if weights.sparse == 0:  # then the search does not ask the sparse part for candidates, nor else the dense one
        scores = np.where(found.of_dense, scores, -np.inf)
    elif weights.dense == 0:
        scores = np.where(found.of_sparse, scores, -np.inf)
    ranked: dict[str, float] = {}
    for i in np.argsort(-scores, kind="stable").tolist():
        if len(ranked) == depth or scores[i] == -np.inf:
            break
        ranked.setdefault(names[i], float(scores[i]))
    return ranked


def _cross_validated(values: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """For each query the mean, over several divisions into folds, of its value under the choice that is best for the
    queries of the other folds: float64 [n_queries]. values: float64 [n_choices, n_queries]"""
    rng = np.random.default_rng(seed)
    n_queries = values.shape[1]
    total = np.zeros(n_queries)
    for _ in range(_REPEATS):
        fold_of = rng.permutation(n_queries) % folds
        for fold in range(folds):
            own = fold_of == fold
            total[own] += values[_first_best(values[:, ~own].mean(axis=1))][own]
    return total / _REPEATS


def _compare(differences: np.ndarray, seed: int) -> tuple[float, float, float]:
    """95 % interval of the mean difference, and the two-sided p-value of a paired permutation test."""
    stats = _import_stats()
    if not differences.any():
        return 0.0, 0.0, 1.0
    test = stats.permutation_test(
        (differences,), _mean, permutation_type="samples", n_resamples=_RESAMPLES, rng=np.random.default_rng(seed)
    )
    interval = stats.bootstrap(
        (differences,), _mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high), float(test.pvalue)


def _import_stats() -> Any:
    """The module scipy.stats, which is not part of a plain installation."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("tuning needs scipy: pip install 'm3edge[bench]'") from error
    return stats


def _mean(differences: np.ndarray, axis: int = 0) -> Any:
    return np.mean(differences, axis=axis)


def _best(choices: Sequence[Choice], means: np.ndarray, allowed: Sequence[bool] | np.ndarray) -> Scored:
    number = _first_best(np.where(allowed, means, -np.inf))
    return Scored(choices[number], float(means[number]))


def _first_best(means: np.ndarray) -> int:
    """Of equal means the earlier one: a preset before the grid."""
    return int((means > means.max() - _ROUNDING).argmax())
