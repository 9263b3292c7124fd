"""`m3edge tune`: what it reports is what a search does, a real gain is found, and noise is called noise."""

import json
import sys

import numpy as np
import pytest

from m3edge import Index, tuning
from m3edge.cli import main
from m3edge.corpus import Candidates
from m3edge.errors import FormatError
from m3edge.evaluation import import_ir_measures, read_beir
from m3edge.tuning import Choice, Scored, Tuning, Weights, tune

pytest.importorskip("scipy")

LEXICAL_ONLY = Choice(tuning.Weights(0.0, 1.0, 0.0), "bm25")


@pytest.fixture(scope="module")
def dataset(small_beir):
    return read_beir(small_beir)


@pytest.fixture(scope="module")
def filled(encoder, dataset, tmp_path_factory):
    """An index of the small data set."""
    with Index.create(tmp_path_factory.mktemp("tune") / "index", encoder) as index:
        index.add([{"id": id_, "text": text} for id_, text in dataset.corpus.items()])
        yield index


def judged_by(index, dataset, choice, n=1):
    """The data set, judged by what a search under this choice finds; queries that find nothing left out."""
    found = {
        id_: index.search(text, n, weights=choice.weights, lexical=choice.lexical)
        for id_, text in dataset.queries.items()
    }
    qrels = {id_: {hit.id: 1 for hit in hits} for id_, hits in found.items() if hits}
    return dataset._replace(queries={id_: dataset.queries[id_] for id_ in qrels}, qrels=qrels)


def searched(index, dataset, choice):
    """nDCG@10 of real searches under a choice."""
    ndcg = import_ir_measures().parse_measure("nDCG@10")
    run = {
        id_: {hit.id: hit.score for hit in index.search(text, 10, weights=choice.weights, lexical=choice.lexical)}
        for id_, text in dataset.queries.items()
    }
    return import_ir_measures().calc_aggregate([ndcg], dataset.qrels, run)[ndcg]


def test_what_is_reported_is_what_a_search_with_these_weights_gives(filled, dataset):
    result = tune(filled, dataset)
    assert result.queries == 12
    for item in (result.baseline, result.best, *result.by_lexical):
        assert item.value == pytest.approx(searched(filled, dataset, item.choice), abs=1e-6)
    assert result.best.value == max(item.value for item in result.by_lexical) >= result.baseline.value


def test_where_one_kind_of_score_decides_it_is_found_and_the_gain_is_no_chance(filled, dataset):
    theirs = judged_by(filled, dataset, LEXICAL_ONLY, n=3)
    result = tune(filled, theirs, folds=4)
    assert result.best.choice.lexical == "bm25"
    assert result.best.choice.weights.sparse > 0.5
    assert result.best.value == pytest.approx(searched(filled, theirs, LEXICAL_ONLY))
    assert result.beyond_noise
    assert result.low <= result.gain <= result.high


def test_where_the_default_is_right_nothing_is_advised(filled, dataset):
    result = tune(filled, judged_by(filled, dataset, tune(filled, dataset).baseline.choice), lexical=["m3"])
    assert (result.baseline.value, result.gain, result.p_value) == (1.0, 0.0, 1.0)
    assert result.best.choice == result.baseline.choice
    assert not result.beyond_noise


def test_differences_of_rounding_error_are_no_gain(filled, dataset):
    # two thirds of what is judged is in no index: the default is right, and ten times every query's nDCG is rounded
    theirs = judged_by(filled, dataset, tune(filled, dataset).baseline.choice)
    theirs = theirs._replace(
        qrels={id_: {**judged, "elsewhere": 1, "nowhere": 1} for id_, judged in theirs.qrels.items()}
    )
    result = tune(filled, theirs, lexical=["m3"])
    assert result.baseline.value == pytest.approx(1 / (1 + 1 / np.log2(3) + 1 / 2))
    assert (result.gain, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert result.validated == result.baseline.value
    assert not result.beyond_noise


def test_of_means_that_are_equal_but_for_rounding_the_first_is_best():
    values = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.0, 0.0, 0.0]])
    means = np.append(values.mean(axis=1), 0.2)
    assert len(set(means.tolist())) > 2  # sums in another order differ
    assert tuning._first_best(means) == 0
    assert tuning._first_best(means[::-1]) == 0


@pytest.mark.parametrize(
    ("weights", "gain", "p_value", "expected"),
    [
        ((0.5, 0.5, 0.0), 0.0123, 0.001, True),
        ((0.5, 0.5, 0.0), 0.00006, 0.001, True),
        ((0.5, 0.5, 0.0), 0.00004, 0.001, False),  # printed as +0.0000
        ((0.5, 0.5, 0.0), 0.0123, 0.06, False),
        ((0.5, 0.5, 0.0), -0.0123, 0.001, False),
        ((1.0, 0.3, 1.0), 0.0123, 0.001, False),  # nothing new to search with
    ],
)
def test_only_a_gain_that_is_seen_and_by_other_weights_is_beyond_noise(weights, gain, p_value, expected):
    baseline, best = (Scored(Choice(Weights(*each), "m3"), 0.5) for each in ((1.0, 0.3, 1.0), weights))
    result = Tuning("nDCG@10", 100, baseline, best, (best,), 0.5 + gain, gain, gain - 0.1, gain + 0.1, p_value)
    assert result.beyond_noise is expected


def test_the_best_of_many_random_choices_is_called_noise(rng):
    values = rng.random((200, 60))
    before, after = values[0], tuning._cross_validated(values, 5, seed=0)
    assert values.mean(axis=1).max() - before.mean() > 0.05  # what looking at the same queries would promise
    assert tuning._compare(after - before, seed=0)[2] > 0.05


def test_a_choice_is_never_judged_by_queries_that_chose_it():
    # each choice is right for one query alone: whoever is judged by others' choices gets nothing
    assert tuning._cross_validated(np.eye(6), folds=6, seed=0).sum() == 0


def test_a_part_without_weight_puts_no_document_forward():
    ones = np.ones(2, np.float32)
    found = Candidates(np.arange(2), np.array([True, False]), np.array([False, True]), ones, ones, ones)
    names = ["of dense", "of sparse"]
    assert set(tuning._ranked(found, names, tuning.Weights(1, 1, 1), 10)) == set(names)
    assert set(tuning._ranked(found, names, tuning.Weights(1, 0, 1), 10)) == {"of dense"}
    assert set(tuning._ranked(found, names, tuning.Weights(0, 0, 1), 10)) == {"of dense"}
    assert set(tuning._ranked(found, names, tuning.Weights(0, 1, 1), 10)) == {"of sparse"}


def test_passages_are_judged_by_the_document_they_are_part_of(encoder, dataset, tmp_path):
    with Index.create(tmp_path / "index", encoder) as index:
        for id_, text in dataset.corpus.items():
            halves = (text[: len(text) // 2], text[len(text) // 2 :])
            parts = [
                {"id": f"{id_}#{i}", "text": half, "metadata": {"_passage": {"document": id_}}}
                for i, half in enumerate(halves)
            ]
            index.add(parts)
        index.delete("gzip#0")
        assert tune(index, dataset, lexical=["m3"]).baseline.value > 0.7


def test_the_command_prints_what_to_search_with(filled, dataset, small_beir, mini_fp32, capsys):
    command = ["tune", str(filled.folder), "--data", str(small_beir), "--model", str(mini_fp32), "--lexical", "m3,bm25"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "best with bm25" in printed
    assert "keep the default" in printed or "--weights" in printed
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 12


def test_what_cannot_be_tuned_is_refused_by_name(filled, dataset, mini_fp32, tmp_path, capsys):
    with pytest.raises(ValueError, match="at least as many queries as folds, 13, got 12"):
        tune(filled, dataset, folds=13)
    with pytest.raises(ValueError, match="lexical must be some of m3, m3-idf, bm25, got \\['bm26'\\]"):
        tune(filled, dataset, lexical=["bm26"])
    strangers = dataset._replace(qrels={id_: {"elsewhere": 1} for id_ in dataset.queries})
    with pytest.raises(FormatError, match="holds none of the 1 documents that are judged, such as 'elsewhere'"):
        tune(filled, strangers)
    assert main(["tune", str(filled.folder), "--data", str(tmp_path)]) == 1
    assert "corpus.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["foo", "BPM", "ERR@10", "Judged@10", "nDCG@0", "nDCG@101", "P", "", None])
def test_a_metric_that_cannot_be_counted_is_refused_before_anything_is_encoded(filled, dataset, metric, monkeypatch):
    monkeypatch.setattr(filled, "encoder", None)
    with pytest.raises(ValueError, match=f"metric must be such as nDCG@10, .* from 1 to 100, got {metric!r}"):
        tune(filled, dataset, metric=metric)


@pytest.mark.parametrize(("package", "extra"), [("ir_measures", "eval"), ("scipy", "bench")])
def test_a_missing_package_is_missed_before_anything_is_encoded(filled, dataset, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(filled, "encoder", None)
    with pytest.raises(ImportError, match=rf"pip install 'm3edge\[{extra}\]'"):
        tune(filled, dataset)


def test_the_command_refuses_a_metric_before_it_reads_anything(capsys):
    assert main(["tune", "no-index", "--data", "no-data", "--metric", "nDCG@0"]) == 1
    assert "metric must be such as nDCG@10, R@100, RR@10, P@3 or AP" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["R@100", "RR(rel=1)@10", "P@1", "AP"])
def test_other_metrics_can_be_tuned_for(filled, dataset, metric):
    result = tune(filled, dataset, lexical=["m3"], metric=metric)
    assert result.metric == metric
    assert 0 < result.baseline.value <= result.best.value <= 1
