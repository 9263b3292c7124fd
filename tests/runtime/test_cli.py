"""The m3edge command as a user types it: what it prints, to where, and how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from m3edge.model_folder import MANIFEST, _self_checksum

LONG = "\n\n".join(f"Paragraph {i} is about tea number {i} and the leaves it is made from." for i in range(100))


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


def test_encode_takes_texts_before_and_behind_its_options(run, mini_fp32, capsys):
    code, out, _ = run("encode", mini_fp32, "--heads", "sparse", "one text", "another")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["one text", "another"]
    with pytest.raises(SystemExit, match="2"):
        run("encode", mini_fp32, "one text", "--head", "sparse", "--nonsense")
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_encode_reads_texts_from_stdin(mini_fp32):
    command = [sys.executable, "-m", "m3edge.cli", "encode", str(mini_fp32), "-", "--heads", "dense"]
    result = subprocess.run(command, input="a\nb\n", capture_output=True, text=True, check=True)
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["a", "b"]
    assert result.stderr == ""  # no progress bar where there is no terminal


def test_encode_prints_each_block_of_stdin_before_it_reads_the_next(run, capsys, monkeypatch, mini_fp32):
    printed = []

    def lines():
        for i in range(5):
            printed.extend(json.loads(line)["text"] for line in capsys.readouterr().out.splitlines())
            assert len(printed) == i // 2 * 2
            yield f"text {i}\n"

    monkeypatch.setattr("m3edge.commands.encoding._BLOCK_TEXTS", 2)
    monkeypatch.setattr(sys, "stdin", lines())
    code, out, err = run("encode", mini_fp32, "--heads", "dense")
    assert (code, err) == (0, "")
    printed.extend(json.loads(line)["text"] for line in out.splitlines())
    assert printed == [f"text {i}" for i in range(5)]


def test_encode_leaves_windows_line_ends_out(run, monkeypatch, mini_fp32):
    monkeypatch.setattr(sys, "stdin", iter(["a\r\n", "\r\n", "b c\r\n", "d"]))
    _, out, _ = run("encode", mini_fp32, "--heads", "sparse")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a", "", "b c", "d"]


def test_encode_says_which_texts_were_cut(run, mini_fp32):
    _, out, _ = run("encode", mini_fp32, "word " * 1000, "word", "--heads", "sparse")
    cut, whole = (json.loads(line) for line in out.splitlines())
    assert cut["truncated"] is True
    assert set(whole) == {"text", "sparse"}


def test_a_filter_chooses_among_what_was_indexed(run, indexed):
    for filter, expected in (
        ({"lang": "zh"}, {"zh"}),
        ({"lang": {"$exists": False}, "_passage.line": 1}, {"gzip.txt", "long.md"}),
    ):
        code, out, _ = run("search", indexed, "files", "--filter", json.dumps(filter), "--json")
        assert code == 0
        assert {hit["metadata"]["_passage"]["document"].split("/")[-1] for hit in json.loads(out)["hits"]} == expected


def test_a_wrong_filter_is_said_with_its_place(run, indexed, capsys):
    code, _, err = run("search", indexed, "files", "--filter", '{"lang": {"$like": "z"}}')
    assert code == 1
    assert "filter.lang.$like: unknown operator" in err
    with pytest.raises(SystemExit, match="2"):
        run("search", indexed, "files", "--filter", "{lang: zh}")
    assert "expected JSON" in capsys.readouterr().err


def test_a_new_index_takes_the_token_options(run, tmp_path, mini_fp32):
    (tmp_path / "tea.txt").write_text("Green tea is made from unoxidised leaves.")
    options = ("--token-codec", "int4", "--token-pooling", 2)
    code, _, _ = run("index", tmp_path / "index", "--model", mini_fp32, tmp_path / "tea.txt", *options)
    assert code == 0
    _, out, _ = run("info", tmp_path / "index", "--json")
    info = json.loads(out)
    assert (info["token_codec"], info["token_pooling"], info["dense"]) == ("int4", 2, "auto")


def test_search_finds_what_was_indexed(run, indexed):
    code, out, err = run("search", indexed, "how do I compress a file", "-k", 2, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert {hit["metadata"]["_passage"]["document"].split("/")[-1] for hit in result["hits"]} == {"gzip.txt", "zh"}
    assert set(result["hits"][0]["scores"]) == {"dense", "sparse", "tokens"}


def test_a_hit_in_a_long_text_says_where_it_is(run, indexed):
    _, out, _ = run("search", indexed, "tea number 90", "-k", 1, "--json")
    hit = json.loads(out)["hits"][0]
    place = hit["metadata"]["_passage"]
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


def test_indexing_again_encodes_only_what_changed(run, indexed, mini_fp32):
    texts = indexed.parent / "texts"
    (texts / "gzip.txt").write_text("The bz2 module compresses and decompresses files.")
    _, out, _ = run("index", indexed, "--model", mini_fp32, texts)
    assert "1 passages added" in out
    assert "unchanged" in out
    _, out, _ = run("search", indexed, "bz2", "-k", 1)
    assert "The bz2 module" in out


def test_a_model_that_was_changed_under_its_index_is_refused(run, tmp_path, mini_fp32):
    model, text = tmp_path / "model", tmp_path / "text.md"
    shutil.copytree(mini_fp32, model, copy_function=os.symlink)
    text.write_text("The gzip module compresses files.")
    assert run("index", tmp_path / "index", "--model", model, text)[0] == 0
    manifest = json.loads((model / MANIFEST).read_text())
    manifest["model"]["fingerprint"] = "f" * 64
    manifest["sha256"] = _self_checksum(manifest)
    (model / MANIFEST).unlink()
    (model / MANIFEST).write_text(json.dumps(manifest))
    for command in (("search", tmp_path / "index", "gzip"), ("index", tmp_path / "index", "--model", model, text)):
        code, _, err = run(*command)
        assert code == 1
        assert "built with model 'm3-mini'" in err
        assert "open it with that model or build a new index" in err


def test_a_model_that_was_moved_is_missed_by_the_index_that_remembers_it(run, tmp_path, mini_fp32):
    model, text = tmp_path / "model", tmp_path / "text.md"
    shutil.copytree(mini_fp32, model, copy_function=os.symlink)
    text.write_text("The gzip module compresses files.")
    assert run("index", tmp_path / "index", "--model", model, text)[0] == 0
    model.rename(tmp_path / "moved")
    code, out, err = run("search", tmp_path / "index", "gzip")
    assert (code, out) == (1, "")
    assert f"{tmp_path / 'index'}: its model folder, {model}, is not there any more; name another with --model" in err
    assert run("search", tmp_path / "index", "gzip", "--model", tmp_path / "moved")[0] == 0


def test_indexing_goes_on_where_a_kill_stopped_it(run, tmp_path, mini_fp32, monkeypatch):
    monkeypatch.setattr("m3edge.commands.indexing._COMMIT_PASSAGES", 4)
    lines = [json.dumps({"_id": f"d{i}", "text": f"Text number {i}."}) + "\n" for i in range(40)]
    (tmp_path / "docs.jsonl").write_text("".join(lines))
    command = ["index", str(tmp_path / "index"), "--model", str(mini_fp32), str(tmp_path / "docs.jsonl")]
    code = (
        "import os, signal, sys, m3edge.cli, m3edge.commands.indexing\n"
        "from m3edge.index.writing import Writing\n"
        "m3edge.commands.indexing._COMMIT_PASSAGES, add, calls = 4, Writing.add, []\n"
        "def add_or_die(self, *args, **kwargs):\n"
        "    calls.append(self)\n"
        "    report = add(self, *args, **kwargs)\n"
        "    if len(calls) == 6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return report\n"
        "Writing.add = add_or_die\n"
        "m3edge.cli.main(sys.argv[1:])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, *command], check=False).returncode == -9
    assert json.loads(run("check", tmp_path / "index", "--json")[1]) == {"sound": True, "documents": 20, "problems": []}
    code, out, _ = run(*command)
    assert (code, out.split(",")[:2]) == (0, ["20 passages added", " 20 unchanged"])
    assert json.loads(run("check", tmp_path / "index", "--json")[1])["documents"] == 40


def test_the_same_id_twice_is_refused(run, tmp_path, mini_fp32):
    (tmp_path / "docs.jsonl").write_text(2 * '{"_id": "a", "text": "x"}\n')
    code, _, err = run("index", tmp_path / "index", "--model", mini_fp32, tmp_path / "docs.jsonl")
    assert code == 1
    assert "id 'a' came twice" in err


def test_check_says_what_is_damaged_and_repairs_it(run, indexed):
    code, out, _ = run("check", indexed)
    assert (code, out.splitlines()) == (0, [out.strip()])
    assert "sound" in out
    path = indexed / "tokens.i8"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    code, out, _ = run("check", indexed, "--json")
    report = json.loads(out)
    assert (code, report["sound"]) == (1, False)
    (problem,) = report["problems"]
    assert (problem["file"], problem["remedy"], len(problem["documents"])) == (str(path), "encode", 1)
    code, out, _ = run("check", indexed)
    assert code == 1
    assert "tokens.i8: token vectors differ from their checksums (1 documents:" in out
    assert "see `m3edge check" in run("info", indexed)[2]
    assert run("check", indexed, "--repair")[0] == 0  # with the model that the index remembers
    assert run("check", indexed)[0] == 0


def test_check_finds_damage_that_keeps_an_index_from_opening(run, tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"not a database" * 100)
    code, out, _ = run("check", tmp_path, "--json")
    assert code == 1
    assert "damaged" in json.loads(out)["problems"][0]["what"]


def test_compact_says_how_much_it_gave_back(run, indexed, mini_fp32):
    texts = indexed.parent / "texts"
    (texts / "sub" / "long.md").write_text("Now short.")
    run("index", indexed, "--model", mini_fp32, texts)
    code, out, _ = run("compact", indexed)
    before, after = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:bytes|now)", out))
    assert code == 0
    assert after < before
    assert run("check", indexed)[0] == 0


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
        (["check", "nowhere"], "nowhere: not an m3edge index, it has no index.sqlite"),
        (["check", "nowhere", "--repair"], "nowhere: not an m3edge index, it has no index.sqlite"),
        (["check", "MODEL"], "not an m3edge index, it has no index.sqlite"),
        (["encode", "nowhere", "text"], "no such folder"),
        (["index", "new", "--model", "MODEL", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["eval", "MODEL", "nowhere"], "corpus.jsonl: no such file"),
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
    for command in (
        ["search"],
        ["search", "i", "q", "--weights", "1,2"],
        ["encode", "m", "--heads", "x"],
        ["eval", "m", "d", "--queries", "0"],
        [],
    ):
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
