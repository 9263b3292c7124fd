"""Which kernels run: the native ones, a lesser instruction set's, or the numpy twins where there was no compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3edge import kernels

native = pytest.mark.skipif("native" not in kernels.DESCRIPTION, reason="installed without a compiler, or forced off")

# Without a compiler the module is not there; None in its place makes importing it fail alike.
WITHOUT_NATIVE = "import sys; sys.modules['m3edge._native'] = None\n"
SEARCH = """
import sys, m3edge
from m3edge.cli import main
encoder = m3edge.Encoder.load(sys.argv[1], "cpu")
texts = ["Green tea.", "Black coffee.", "A cup of tea."]
with m3edge.Index.create(sys.argv[2], encoder) as index:
    index.add([m3edge.Document(str(i), text) for i, text in enumerate(texts)])
    for lexical in ("m3", "m3-idf", "bm25"):
        print([(hit.id, round(hit.score, 5)) for hit in index.search("which tea is green?", lexical=lexical)])
main(["info", sys.argv[2], "--json"])
"""


def run(code: str, *arguments: str, wanted: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "M3EDGE_KERNELS": wanted}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def searched(code: str, *arguments: str, wanted: str = "") -> tuple[list[str], str]:
    """The hits that were printed, and what `m3edge info` calls the kernels."""
    result = run(code, *arguments, wanted=wanted)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return lines[:3], json.loads("\n".join(lines[3:]))["kernels"]


@pytest.fixture(scope="module")
def best(mini_int8, tmp_path_factory) -> list[str]:
    """What the kernels find that run by themselves."""
    return searched(SEARCH, str(mini_int8), str(tmp_path_factory.mktemp("best") / "index"))[0]


def test_without_a_compiler_an_index_works_and_info_says_what_it_runs_on(best, mini_int8, tmp_path):
    found, description = searched(WITHOUT_NATIVE + SEARCH, str(mini_int8), str(tmp_path / "index"))
    assert description == "numpy (no compiler at install)"
    assert found == best


@native
@pytest.mark.parametrize("wanted", ["numpy", "plain"])
def test_the_environment_takes_lesser_kernels_and_they_find_the_same(best, mini_int8, tmp_path, wanted):
    found, description = searched(SEARCH, str(mini_int8), str(tmp_path / "index"), wanted=wanted)
    assert wanted in description
    assert found == best


@native
def test_kernels_that_this_machine_lacks_are_refused_with_those_it_has():
    error = run("import m3edge.kernels", wanted="sse9").stderr
    assert "M3EDGE_KERNELS must be one of numpy, " in error
    assert "plain, got 'sse9'" in error


def test_native_kernels_that_are_wanted_and_missing_are_an_import_error():
    error = run(WITHOUT_NATIVE + "import m3edge.kernels", wanted="avx2").stderr
    assert "ImportError: M3EDGE_KERNELS=avx2, but the native kernels are not installed" in error


@pytest.mark.slow
def test_the_install_succeeds_without_a_compiler(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-C", f"build-dir={tmp_path / 'build'}"]
    environment = {**os.environ, "CXX": "/bin/false", "CC": "/bin/false"}
    subprocess.run([*command, "-w", str(tmp_path), str(root)], check=True, env=environment)
    assert [wheel.name.split("-")[2:] for wheel in tmp_path.glob("*.whl")] == [["py3", "none", "any.whl"]]
