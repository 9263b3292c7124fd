"""The README's code blocks run as they stand, and print what it says they print."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from m3edge.cli import main

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [shlex.split(line) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
NUMBER = re.compile(r"\d+\.\d+")

WORDS = {
    "tea": "Green tea is made from unoxidised leaves.",
    "Zeit": "Das Modul rechnet mit Datum und Uhrzeit.",
    "茶": "绿茶",
}


@pytest.fixture
def place(tmp_path, monkeypatch, mini_checkpoint, mini_int8):
    """A folder as the README assumes it: the models that `make demo` leaves, and the README itself."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mini").symlink_to(mini_checkpoint)
    (tmp_path / "models" / "mini-int8").symlink_to(mini_int8)
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_one_after_another_and_print_what_is_shown(place, capsys):
    names: dict[str, object] = {}
    for (language, code), (following, shown) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language == "python":
            exec(compile(code, "README.md", "exec"), names)
            printed = capsys.readouterr().out
            if following == "text":
                assert NUMBER.sub("#", printed.strip()) == NUMBER.sub("#", shown.strip())
                numbers = ([float(x) for x in NUMBER.findall(text)] for text in (printed, shown))
                assert next(numbers) == pytest.approx(next(numbers), abs=0.011)


def test_the_commands_run(place, capsys):
    write_beir_folder(place / "my-beir-folder")
    asked = ("search", "train", "export", "int8", "tea")
    write_beir_folder(place / "my-judged-queries", [("README.md", word) for word in asked])
    ours = [arguments for name, *arguments in COMMANDS if name == "m3edge"]
    assert {arguments[0] for arguments in ours} >= {"bench", "encode", "index", "info", "search", "tune"}
    for arguments in ours:
        assert main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out


def test_the_export_commands_run(place, capsys):
    pytest.importorskip("torch")
    from m3edge_export import cli

    write_beir_folder(place / "my-beir-folder")
    (place / "pairs.jsonl").write_text(lines({"query": word, "positive": text} for word, text in WORDS.items()))
    ours = [arguments for name, *arguments in COMMANDS if name == "m3edge-export"]
    assert {arguments[0] for arguments in ours} == {"onnx", "train"}
    for arguments in ours:
        assert cli.main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", README)) <= targets | {"sure"}


def lines(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def write_beir_folder(folder, judgements=tuple((f"d-{word}", word) for word in WORDS)):
    """judgements: pairs of a document's id and the query, its own id, that it answers"""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines({"_id": f"d-{word}", "text": text} for word, text in WORDS.items()))
    (folder / "queries.jsonl").write_text(lines({"_id": query, "text": query} for _, query in judgements))
    (folder / "qrels" / "test.tsv").write_text("".join(f"{query}\t{id_}\t1\n" for id_, query in judgements))
