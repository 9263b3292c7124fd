"""The README's code blocks run as they stand, and print what it says they print."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from m3edge.cli import main

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")


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
    commands = [shlex.split(line) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    ours = [command for command in commands if command[0] == "m3edge"]
    assert len(ours) >= 6
    for _, *arguments in ours:
        assert main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", README)) <= targets | {"sure"}
