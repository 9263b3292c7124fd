"""Run by test_mteb.py in an environment with mteb: two tasks made of local data, evaluated through the adapter.

    python mteb_tasks.py MODEL_FOLDER BEIR_FOLDER RESULTS_FOLDER

Prints one JSON object: each way's scores. benchmarks/bge_m3.py, with the local task in place of the hub's, leaves its
file in RESULTS_FOLDER.
"""

import json
import sys
from pathlib import Path

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import EncoderProtocol, SearchProtocol

from m3edge.evaluation import read_beir
from m3edge.mteb import MtebEncoder, MtebSearch

MODEL, DATA, RESULTS = sys.argv[1:]
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
GENERAL = {
    "description": "local",
    "reference": None,
    "dataset": {"path": "local", "revision": "local"},
    "category": "t2t",
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
}


class LocalRetrieval(AbsTaskRetrieval):
    metadata = TaskMetadata(type="Retrieval", name="LocalRetrieval", main_score="ndcg_at_10", **GENERAL)

    def load_data(self, num_proc=None, **options):
        data = read_beir(DATA)
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list([{"id": id_, "text": text} for id_, text in data.corpus.items()]),
                    "queries": Dataset.from_list([{"id": id_, "text": text} for id_, text in data.queries.items()]),
                    "relevant_docs": data.qrels,
                    "top_ranked": self.top_ranked(data),
                }
            }
        }
        self.data_loaded = True

    def top_ranked(self, data):
        return None


class LocalReranking(LocalRetrieval):
    metadata = TaskMetadata(type="Reranking", name="LocalReranking", main_score="ndcg_at_10", **GENERAL)

    def top_ranked(self, data):
        """The right document and one wrong one for each query."""
        return {query: [*right, "moon"] for query, right in data.qrels.items()}


class LocalSTS(AbsTaskSTS):
    metadata = TaskMetadata(type="STS", name="LocalSTS", main_score="cosine_spearman", **GENERAL)
    min_score, max_score = 0, 1

    def load_data(self, num_proc=None, **options):
        rows = {
            "sentence1": ["Green tea is hot.", "Bees make honey.", "The train leaves at eight.", "It rains."],
            "sentence2": [
                "Grüner Tee ist heiß.",
                "Honey comes from bees.",
                "A violin has strings.",
                "Chess is a game.",
            ],
            "score": [1.0, 1.0, 0.0, 0.0],
        }
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


def main():
    encoder, search = MtebEncoder(MODEL), MtebSearch(MODEL)
    assert isinstance(encoder, EncoderProtocol)
    assert isinstance(search, SearchProtocol)
    scores = {}
    for name, model, tasks in (
        ("encoder", encoder, [LocalRetrieval(), LocalSTS()]),
        ("search", search, [LocalRetrieval(), LocalReranking()]),
        ("sparse", MtebSearch(MODEL, weights=(0, 1, 0), lexical="bm25"), [LocalRetrieval()]),
    ):
        results = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
        scores[name] = {result.task_name: result.get_score() for result in results}
        scores[name]["called"] = model.mteb_model_meta.name
    run_bge_m3()
    print(json.dumps(scores))


def run_bge_m3():
    sys.path.insert(0, str(BENCHMARKS))
    import bge_m3

    bge_m3.RESULTS = Path(RESULTS)
    mteb.get_tasks = lambda tasks, languages: [LocalRetrieval()]
    sys.argv = ["bge_m3.py", MODEL, "--tasks", "LocalRetrieval", "--ways", "BM25", "All"]
    bge_m3.main()
    bge_m3.main()  # goes on where it was: at the end


if __name__ == "__main__":
    main()
