"""The code blocks of the README and of docs/ run as they stand, and print what it says there that they print."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from m3edge.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
BLOCKS = {name: re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}
COMMANDS = {
    name: [shlex.split(line, comments=True) for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    for name, blocks in BLOCKS.items()
}
NUMBER = re.compile(r"\d+\.\d+")

WORDS = {
    "tea": "Green tea is made from unoxidised leaves.",
    "Zeit": "Das Modul rechnet mit Datum und Uhrzeit.",
    "茶": "绿茶",
}


def with_commands(program):
    """The pages that show commands of this program."""
    return [name for name, commands in COMMANDS.items() if any(command[:1] == [program] for command in commands)]


def of(page, program):
    return [arguments for name, *arguments in COMMANDS[page] if name == program]


@pytest.fixture
def place(tmp_path, monkeypatch, mini_checkpoint, mini_int8):
    """A folder as the pages assume it: the README, the models that `make demo` leaves, and a reader's own data."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mini").symlink_to(mini_checkpoint)
    (tmp_path / "models" / "mini-int8").symlink_to(mini_int8)
    shutil.copy(ROOT / "README.md", tmp_path)
    write_beir_folder(tmp_path / "my-beir-folder")
    asked = ("search", "train", "export", "int8", "tea")
    write_beir_folder(tmp_path / "my-judged-queries", [("README.md", word) for word in asked])
    pairs = ({"query": word, "positive": text} for word, text in WORDS.items())
    (tmp_path / "pairs.jsonl").write_text(lines(pairs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_example_can_be_run_again(place, capsys):
    _, code = BLOCKS["README.md"][0]
    printed = []
    for _ in range(2):
        exec(compile(code, "README.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if "python" in dict(blocks)])
def test_the_python_blocks_run_one_after_another_and_print_what_is_shown(page, place, capsys):
    names: dict[str, object] = {}
    blocks = BLOCKS[page]
    for (language, code), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            printed = capsys.readouterr().out
            assert bool(printed) == (following == "text")
            assert NUMBER.sub("#", printed.strip()) == NUMBER.sub("#", shown.strip() if printed else "")
            numbers = ([float(x) for x in NUMBER.findall(text)] for text in (printed, shown if printed else ""))
            assert next(numbers) == pytest.approx(next(numbers), abs=0.011)


@pytest.mark.parametrize("page", with_commands("m3edge"))
def test_the_commands_run(page, place, capsys):
    for arguments in of(page, "m3edge"):
        assert main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out


@pytest.mark.parametrize("page", with_commands("m3edge-export"))
def test_the_export_commands_run(page, place, mini_checkpoint, capsys):
    """On two of mini's twelve layers: all twelve are exported for the other tests, and take a minute longer."""
    pytest.importorskip("torch")
    from m3edge_export import cli

    (place / "models" / "mini").unlink()
    write_first_layers(mini_checkpoint, place / "models" / "mini", 2)
    for arguments in of(page, "m3edge-export"):
        assert cli.main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out


def test_every_command_is_shown_somewhere():
    shown = {arguments[0] for page in COMMANDS for arguments in of(page, "m3edge")}
    assert shown == {"bench", "check", "compact", "encode", "eval", "index", "info", "search", "tune"}
    assert {arguments[0] for page in COMMANDS for arguments in of(page, "m3edge-export")} == {"onnx", "train"}


def test_the_readme_opens_with_code_and_its_output_before_anything_else():
    kinds = [kind for kind, _ in BLOCKS["README.md"]]
    assert kinds[:2] == ["python", "text"]
    opening, _, _ = PAGES["README.md"].partition("```python")
    assert len(opening.split(". ")) == 1  # one sentence
    headings = re.findall(r"^## (.+)", PAGES["README.md"], re.MULTILINE)
    assert headings == ["Export", "Runtime", "Index", "Benchmarks", "Limits", "Development"]


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md", "benchmarks/bge_m3.md"])
def test_every_link_to_a_file_or_heading_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / page).parent / file
        assert path.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.+)", path.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", PAGES["README.md"])) <= targets | {"sure", "it"}


def lines(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def write_first_layers(checkpoint, out, n_layers):
    """The same checkpoint without its later layers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, out)
    config = json.loads((out / "config.json").read_text()) | {"num_hidden_layers": n_layers}
    (out / "config.json").write_text(json.dumps(config))
    later = re.compile(r"layer\.(\d+)\.")
    weights = load_file(out / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not ((at := later.search(name)) and int(at[1]) >= n_layers)}
    assert 0 < len(kept) < len(weights)
    save_file(kept, out / "model.safetensors", {"format": "pt"})


def write_beir_folder(folder, judgements=tuple((f"d-{word}", word) for word in WORDS)):
    """judgements: pairs of a document's id and the query, its own id, that it answers"""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines({"_id": f"d-{word}", "text": text} for word, text in WORDS.items()))
    (folder / "queries.jsonl").write_text(lines({"_id": query, "text": query} for _, query in judgements))
    (folder / "qrels" / "test.tsv").write_text("".join(f"{query}\t{id_}\t1\n" for id_, query in judgements))
