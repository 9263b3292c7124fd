"""The runtime's promises to whoever installs it: light, without PyTorch, with a complete public surface."""

import subprocess
import sys

import m3edge

BLOCK = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "optimum", "onnx", "m3edge_export"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run(code: str, *arguments: str) -> str:
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_runtime_encodes_and_searches_where_torch_cannot_be_imported(mini_fp32, tmp_path):
    code = BLOCK + (
        "import m3edge\n"
        "for module in pkgutil.walk_packages(m3edge.__path__, 'm3edge.'):\n"
        "    importlib.import_module(module.name)\n"
        "encoder = m3edge.Encoder.load(sys.argv[1], 'cpu')\n"
        "with m3edge.Index.create(sys.argv[2], encoder) as index:\n"
        "    index.add([m3edge.Document('tea', 'Green tea is made from unoxidised leaves.')])\n"
        "    print(index.search('what is green tea?')[0].id)\n"
    )
    assert run(code, str(mini_fp32), str(tmp_path / "index")).strip() == "tea"


def test_importing_m3edge_loads_nothing_heavy():
    heavy = run("import sys, m3edge; print([m for m in ('onnxruntime', 'hnswlib', 'tokenizers') if m in sys.modules])")
    assert heavy.strip() == "[]"


def test_a_missing_onnxruntime_names_the_pip_command(mini_fp32):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import m3edge\n"
        "try:\n    m3edge.Encoder.load(sys.argv[1])\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert "pip install 'm3edge[cpu]'" in run(code, str(mini_fp32))


def test_all_names_exactly_what_is_public():
    public = {name for name in vars(m3edge) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(m3edge, name)).__name__ == "module"}
    assert set(m3edge.__all__) == public - modules


def test_without_hnswlib_everything_but_a_graph_works(mini_fp32, tmp_path):
    code = (
        "import sys; sys.modules['hnswlib'] = None\n"
        "import m3edge, m3edge.index.dense\n"
        "m3edge.index.dense.AUTO_NUMBERS = 1\n"
        "encoder = m3edge.Encoder.load(sys.argv[1], 'cpu')\n"
        "for mode in ('auto', 'hnsw'):\n"
        "    with m3edge.Index.create(sys.argv[2] + mode, encoder, dense=mode) as index:\n"
        "        try:\n"
        "            index.add([m3edge.Document('tea', 'Green tea is made from unoxidised leaves.')])\n"
        "            print(index.search('what is green tea?')[0].id)\n"
        "        except ImportError as error:\n"
        "            print(error)\n"
    )
    found = run(code, str(mini_fp32), str(tmp_path / "index"))
    assert found.splitlines() == ["tea", "a graph over dense vectors needs hnswlib: pip install 'm3edge[hnsw]'"]


def test_an_index_with_a_graph_is_searched_where_hnswlib_is_missing(mini_fp32, tmp_path):
    code = (
        "import sys, m3edge, m3edge.index.dense\n"
        "m3edge.index.dense.AUTO_NUMBERS = 1\n"
        "encoder = m3edge.Encoder.load(sys.argv[1], 'cpu')\n"
        "with m3edge.Index.create(sys.argv[2], encoder) as index:\n"
        "    index.add([m3edge.Document('tea', 'Green tea is made from unoxidised leaves.')])\n"
        "print(len(list(index.folder.glob('*.hnsw'))))\n"
        "sys.modules['hnswlib'] = None\n"
        "with m3edge.Index.open(sys.argv[2], encoder) as index:\n"
        "    print(index.search('what is green tea?')[0].id)\n"
    )
    assert run(code, str(mini_fp32), str(tmp_path / "index")).split() == ["1", "tea"]


def test_the_command_says_its_version():
    command = [sys.executable, "-m", "m3edge", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "m3edge 0.1.0\n"
