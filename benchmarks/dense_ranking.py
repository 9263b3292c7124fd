"""nDCG@10 of the ranking that dense vectors alone give a data set's documents."""

from __future__ import annotations

import ir_measures
import numpy as np

from m3edge.evaluation import BeirDataset

NDCG = ir_measures.parse_measure("nDCG@10")


def ndcg(dataset: BeirDataset, queries: np.ndarray, documents: np.ndarray) -> float:
    """nDCG@10 by the products of queries, float32 [n, dim], and documents, float32 [m, dim]."""
    names = list(dataset.corpus)
    run = {
        query: dict(zip(names, row.tolist(), strict=True))
        for query, row in zip(dataset.queries, queries @ documents.T, strict=True)
    }
    return round(float(ir_measures.calc_aggregate([NDCG], dataset.qrels, run)[NDCG]), 5)
