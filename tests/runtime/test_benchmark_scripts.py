"""The scripts in benchmarks/, run as their README says, on little data: each leaves a file and prints a table."""

import json
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


def test_the_papers_tables_have_a_row_for_each_method(run, mini_int8, aligned):
    printed, report = run("tables.py", mini_int8, aligned, "--aligned", "both-", "--long", "long-en", "--queries", 4)
    assert [(row["queries"], row["passages"]) for row in report["rows"]] == [
        ("both-de", "both-de"), ("both-en", "both-de"), ("both-de", "both-en"), ("both-en", "both-en"),
        ("long-en", "long-en"),
    ]  # fmt: skip
    assert report["rows"][-1]["cut"] == 0
    assert all(printed.count(f"\n| {method} |") == 3 for method in ("bm25", "dense", "sparse", "tokens", "all"))


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


def test_the_readme_lists_every_script_and_no_other():
    text = (BENCHMARKS / "README.md").read_text() + (BENCHMARKS / "bge_m3.md").read_text()
    named = set(re.findall(r"python benchmarks/([\w/]+\.py)", text))
    assert all((BENCHMARKS / script).is_file() for script in named)
    assert {path.name for path in BENCHMARKS.glob("*.py")} - {
        "flat_postings.py",
        "machine.py",
        "synthetic.py",
    } <= named  # which the others import
