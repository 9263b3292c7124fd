"""What `m3edge index` takes in, keeps apart, leaves alone and says; and `m3edge delete`."""

import json
import subprocess
import sys

import pytest

from m3edge import Encoder, Index

LONG = "\n\n".join(f"Paragraph {i} is about tea number {i} and the leaves it is made from." for i in range(100))


@pytest.fixture
def index(run, tmp_path, mini_fp32):
    """Run `m3edge index` on paths of tmp_path; returns exit code, stdout, stderr."""

    def index(*paths, options=()):
        return run("index", tmp_path / "index", "--model", mini_fp32, *(tmp_path / path for path in paths), *options)

    return index


def jsonl(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def ids(folder):
    with Index.open(folder / "index") as index:
        return [document.id for document in index]


def test_ids_that_look_like_passages_are_documents_all_the_same(index, tmp_path):
    names = ("issue", "issue#0", "issue#1")
    jsonl(tmp_path / "a.jsonl", *({"_id": name, "text": f"About {name}."} for name in names))
    assert index("a.jsonl")[0] == 0
    code, out, _ = index("a.jsonl")
    assert (code, out.split(",")[:2]) == (0, ["0 passages added", " 3 unchanged"])
    assert ids(tmp_path) == list(names)


def test_a_passage_takes_no_other_documents_place(index, tmp_path):
    jsonl(tmp_path / "a.jsonl", {"_id": "page#1", "text": "Short."}, {"_id": "page", "text": LONG})
    code, _, err = index("a.jsonl")
    assert code == 1
    assert (
        f"{tmp_path / 'a.jsonl'}:2: passage 'page#1' of document 'page' has the id of one of document 'page#1'" in err
    )
    assert not (tmp_path / "index").exists()


def test_a_documents_own_fields_are_left_as_they_are(index, tmp_path):
    own = {"document": "contract.pdf", "start": "2024-05-01", "end": "2024-05-02", "line": "U6"}
    jsonl(tmp_path / "a.jsonl", {"_id": "concert", "text": "A concert.", **own})
    assert index("a.jsonl")[0] == 0
    with Index.open(tmp_path / "index") as opened:
        metadata = dict(opened.get("concert").metadata)
    place = metadata.pop("_passage")
    assert metadata == own
    assert place == {"document": "concert", "file": str(tmp_path / "a.jsonl"), "start": 0, "end": 10, "line": 1}


def test_an_emptied_file_loses_its_passages(index, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(f"Text {name}.")
    index("texts")
    (tmp_path / "texts" / "a.txt").write_text("")
    code, out, _ = index("texts")
    assert (code, "1 removed, 1 in the index" in out) == (0, True)


def test_what_is_gone_is_named_and_pruned_when_asked_to(index, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(f"Text {name}.")
    jsonl(tmp_path / "texts" / "c.jsonl", {"_id": "x", "text": "One."}, {"_id": "y", "text": "Two."})
    (tmp_path / "elsewhere.txt").write_text("Elsewhere.")
    index("texts", "elsewhere.txt")
    (tmp_path / "texts" / "a.txt").unlink()
    (tmp_path / "elsewhere.txt").unlink()
    jsonl(tmp_path / "texts" / "c.jsonl", {"_id": "y", "text": "Two."})
    _, out, _ = index("texts")
    assert "5 in the index" in out
    assert "2 passages are of files or lines that are gone; --prune deletes them" in out
    _, out, _ = index("texts", options=["--prune"])
    assert "2 removed, 3 in the index" in out
    assert ids(tmp_path) == [str(tmp_path / "texts" / "b.txt"), "y", str(tmp_path / "elsewhere.txt")]


def test_a_file_named_in_another_way_is_the_same_document(run, index, tmp_path, mini_fp32, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Text.")
    index("texts")
    monkeypatch.chdir(tmp_path / "texts")
    _, out, _ = run("index", tmp_path / "index", "--model", mini_fp32, ".")
    assert out.startswith("0 passages added, 1 unchanged, 1 in the index")


def test_a_run_that_finds_nothing_new_commits_nothing(index, tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    index("a.txt")
    before = (tmp_path / "index" / "index.sqlite").read_bytes()
    index("a.txt", options=["--prune"])
    assert (tmp_path / "index" / "index.sqlite").read_bytes() == before


def test_of_a_folder_only_texts_are_taken(index, tmp_path):
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "description.txt").write_text("hidden")
    (folder / "utf16.txt").write_text("Grüner Tee.", encoding="utf-16")
    (folder / "bom.JSONL").write_text('{"_id": "x", "text": "One."}\n', encoding="utf-8-sig")
    (folder / "no.txt").write_bytes(b"%PDF\0\x89")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    code, out, _ = index("texts")
    assert (code, "2 passages added" in out) == (0, True)
    assert f"2 files passed over, such as {folder / 'no.txt'}" in out
    with Index.open(tmp_path / "index") as opened:
        assert {document.text for document in opened} == {"Grüner Tee.", "One."}


def test_a_named_file_that_is_no_text_is_refused(index, tmp_path):
    (tmp_path / "paper.pdf").write_bytes(b"%PDF\0\x89")
    code, _, err = index("paper.pdf")
    assert (code, "paper.pdf: not a text file" in err) == (1, True)
    (tmp_path / "empty").mkdir()
    code, _, err = index("empty")
    assert (code, "no texts; of a folder, files that end in .txt" in err) == (1, True)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"_id": "", "text": "a"}, "id must not be empty"),
        ({"_id": "\ud800", "text": "a"}, "id must be valid Unicode"),
        ({"_id": "b", "text": "a", "n": float("nan")}, "metadata must be a JSON object"),
        ({"_id": "b", "text": "a", "title": 3}, "expected a string 'title', got 3"),
        ({"_id": "b", "text": "a", "_passage": 3}, "the field '_passage' is for m3edge to fill"),
        ({"_id": "a", "text": "a"}, "id 'a' came twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(index, tmp_path, entry, message):
    jsonl(tmp_path / "a.jsonl", {"_id": "a", "text": "x"}, entry)
    code, _, err = index("a.jsonl")
    assert (code, f"a.jsonl:2: {message}" in err) == (1, True), err


def test_passages_are_no_longer_than_the_model_reads(index, tmp_path):
    (tmp_path / "long.txt").write_text(LONG)
    code, _, err = index("long.txt", options=["--passage-tokens", 4000])
    assert (code, "at most what the model reads, 512 tokens, got 4000" in err) == (1, True)
    assert not (tmp_path / "index").exists()


def test_an_index_remembers_how_long_its_passages_are(index, tmp_path):
    (tmp_path / "long.txt").write_text(LONG)
    index("long.txt", options=["--passage-tokens", 128])
    first = ids(tmp_path)
    _, out, _ = index("long.txt")
    assert out.startswith(f"0 passages added, {len(first)} unchanged")
    index("long.txt", options=["--passage-tokens", 256])
    assert len(ids(tmp_path)) < len(first)


def test_what_was_chosen_when_an_index_was_made_cannot_be_chosen_again(index, tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    index("a.txt", options=["--dense", "hnsw"])
    assert index("a.txt", options=["--dense", "hnsw", "--token-codec", "int8"])[0] == 0
    code, _, err = index("a.txt", options=["--token-codec", "int4"])
    assert (code, "--token-codec is int8 in" in err) == (1, True)


def test_a_run_that_finds_another_one_writing_leaves_its_folder_alone(index, tmp_path, mini_fp32):
    with Index.create(tmp_path / "index", Encoder.load(mini_fp32, "cpu")) as writing, writing.transaction():
        (tmp_path / "a.txt").write_text("Text.")
        code = f"import sys, m3edge.cli; sys.exit(m3edge.cli.main({['index', str(tmp_path / 'index')]} + sys.argv[1:]))"
        command = [sys.executable, "-c", code, "--model", str(mini_fp32), str(tmp_path / "a.txt")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert "is writing to this index" in result.stderr
        writing.add([{"id": "mine", "text": "Still here."}])
    assert ids(tmp_path) == ["mine"]


def test_delete_takes_whole_documents(run, index, tmp_path):
    (tmp_path / "long.txt").write_text(LONG)
    jsonl(tmp_path / "a.jsonl", {"_id": "a", "text": "x"}, {"_id": "b", "text": "y"})
    index("long.txt", "a.jsonl", options=["--passage-tokens", 128])
    code, _, err = run("delete", tmp_path / "index", "a", "nothing")
    assert (code, "no document 'nothing'; nothing was deleted" in err) == (1, True)
    assert run("delete", tmp_path / "index", "a", tmp_path / "long.txt")[0] == 0
    assert ids(tmp_path) == ["b"]
