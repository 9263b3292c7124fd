"""The m3edge command as a user types it: what it prints, to where, and how it fails."""

import json
import subprocess
import sys

import pytest

from m3edge.cli import main

LONG = "\n\n".join(f"Paragraph {i} is about tea number {i} and the leaves it is made from." for i in range(100))


@pytest.fixture
def run(capsys):
    """Run one command; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def indexed(run, tmp_path, mini_fp32):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "gzip.txt").write_text("The gzip module compresses and decompresses files.")
    (folder / "sub" / "long.md").write_text(LONG)
    (folder / "docs.jsonl").write_text(
        json.dumps({"_id": "zh", "title": "zipfile", "text": "使用 zipfile 模块压缩文件。", "lang": "zh"}) + "\n"
    )
    (folder / "picture.png").write_bytes(b"\x89PNG")
    code, out, err = run("index", tmp_path / "index", "--model", mini_fp32, folder)
    assert (code, err) == (0, "")
    assert "passages added" in out
    return tmp_path / "index"


def test_encode_prints_one_object_a_text(run, mini_fp32):
    code, out, err = run("encode", mini_fp32, "one text", "another", "--heads", "dense,sparse")
    first, second = (json.loads(line) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert first["text"] == "one text"
    assert len(second["dense"]) == 384
    assert set(first) == {"text", "dense", "sparse"}


def test_encode_reads_texts_from_stdin(mini_fp32):
    command = [sys.executable, "-m", "m3edge.cli", "encode", str(mini_fp32), "-", "--heads", "dense"]
    result = subprocess.run(command, input="a\nb\n", capture_output=True, text=True, check=True)
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["a", "b"]
    assert result.stderr == ""  # no progress bar where there is no terminal


def test_search_finds_what_was_indexed(run, indexed):
    code, out, err = run("search", indexed, "how do I compress a file", "-k", 2, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert {hit["metadata"]["document"].split("/")[-1] for hit in result["hits"]} == {"gzip.txt", "zh"}
    assert set(result["hits"][0]["scores"]) == {"dense", "sparse", "tokens"}


def test_a_hit_in_a_long_text_says_where_it_is(run, indexed):
    _, out, _ = run("search", indexed, "tea number 90", "-k", 1, "--json")
    hit = json.loads(out)["hits"][0]
    place = hit["metadata"]
    assert place["document"].endswith("long.md")
    assert LONG[place["start"] : place["end"]] == hit["text"]
    assert "number 90" in hit["text"]
    assert place["line"] == LONG.count("\n", 0, place["start"]) + 1


def test_search_prints_scores_and_reasons(run, indexed):
    code, out, _ = run("search", indexed, "compress a file", "-k", 1, "--explain", "--weights", "0.4,0.2,0.4")
    assert code == 0
    assert "dense 0." in out
    assert "shared tokens:" in out
    assert "best matches:" in out


def test_indexing_again_replaces_and_drops_passages_that_are_gone(run, indexed, mini_fp32):
    texts = indexed.parent / "texts"
    (texts / "sub" / "long.md").write_text("Now short.")
    run("index", indexed, "--model", mini_fp32, texts)
    _, out, _ = run("info", indexed, "--json")
    assert json.loads(out)["documents"] == 3


def test_info_describes_a_model_and_an_index(run, indexed, mini_fp32):
    _, out, _ = run("info", mini_fp32, "--json")
    assert json.loads(out)["kind"] == "model folder"
    _, out, _ = run("info", indexed, "--json")
    described = json.loads(out)
    assert described["model"]["name"] == "m3-mini"
    assert described["documents"] > 3
    assert "m3-mini" in run("info", indexed)[1]


def test_eval_prints_the_promised_json_and_nothing_else(run, tmp_path, mini_fp32):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "gzip compresses"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "compress"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    code, out, err = run("eval", mini_fp32, tmp_path, "--json", "--queries", 1)
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert set(result) == {"dataset", "documents", "queries", "modes"}
    assert set(result["modes"]) == {
        "dense",
        "sparse",
        "sparse-idf",
        "bm25",
        "tokens",
        "dense+sparse",
        "all",
        "all-idf",
        "all-bm25",
        "all-long",
    }
    assert set(result["modes"]["all"]) == {"nDCG@10", "R@100", "RR@10"}
    code, out, _ = run("eval", mini_fp32, tmp_path)
    assert "dense+sparse" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["info", "nowhere"], "neither a model folder"),
        (["search", "nowhere", "query"], "not an m3edge index"),
        (["encode", "nowhere", "text"], "no such folder"),
        (["index", "new", "--model", "MODEL", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["eval", "MODEL", "nowhere"], "corpus.jsonl: no such file"),
        (["eval", "MODEL", "nowhere", "--queries", "0"], "--queries must be at least 1"),
    ],
)
def test_a_wrong_path_is_one_line_on_stderr_and_exit_code_1(run, tmp_path, monkeypatch, mini_fp32, command, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(mini_fp32 if word == "MODEL" else word for word in command))
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_exits_with_2(run, capsys):
    for command in (["search"], ["search", "i", "q", "--weights", "1,2"], ["encode", "m", "--heads", "x"], []):
        with pytest.raises(SystemExit) as exit_info:
            run(*command)
        assert exit_info.value.code == 2


def test_a_bad_line_in_a_jsonl_file_leaves_the_index_as_it_was(run, indexed, mini_fp32, tmp_path):
    before = json.loads(run("info", indexed, "--json")[1])["documents"]
    (tmp_path / "bad.jsonl").write_text('{"_id": "a", "text": "x"}\n{"_id": "b"}\n')
    code, _, err = run("index", indexed, "--model", mini_fp32, tmp_path / "bad.jsonl")
    assert code == 1
    assert "bad.jsonl:2: expected a string 'text'" in err
    assert json.loads(run("info", indexed, "--json")[1])["documents"] == before
    code, _, _ = run("index", tmp_path / "new", "--model", mini_fp32, tmp_path / "bad.jsonl")
    assert code == 1
    assert not (tmp_path / "new").exists()
