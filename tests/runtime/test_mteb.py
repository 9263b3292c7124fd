"""The adapter for mteb against the installed package, in an environment of its own: mteb brings a transformers that the
export cannot use."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from m3edge import Encoder
from m3edge.evaluation import evaluate, read_beir
from m3edge.mteb import MtebEncoder, MtebSearch

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("adapter", [MtebEncoder, MtebSearch])
def test_without_mteb_it_says_what_to_install(adapter, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(ImportError, match=r"pip install 'm3edge\[mteb\]'"):
        adapter(encoder)


@pytest.mark.slow
def test_mteb_measures_what_our_own_evaluation_measures(mini_int8, small_beir, tmp_path):
    environment = mteb_environment()
    script = Path(__file__).parent / "mteb_tasks.py"
    command = [environment / "bin" / "python", script, mini_int8, small_beir, tmp_path]
    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    scores = json.loads(run.stdout.splitlines()[-1])
    ours = {m: v["nDCG@10"] for m, v in evaluate(Encoder.load(mini_int8), read_beir(small_beir)).modes.items()}
    assert scores["encoder"]["LocalRetrieval"] == pytest.approx(ours["dense"], abs=1e-4)
    assert scores["search"]["LocalRetrieval"] == pytest.approx(ours["all"], abs=1e-4)
    assert scores["sparse"]["LocalRetrieval"] == pytest.approx(ours["bm25"], abs=1e-4)
    assert scores["search"]["LocalReranking"] > 0.9
    assert scores["encoder"]["LocalSTS"] > 0.8
    rows = json.loads((tmp_path / f"bge-m3-{mini_int8.name}.json").read_bytes())["rows"]
    assert [row["way"] for row in rows] == ["BM25", "All"]
    assert rows[1]["scores"]["default"]["ndcg_at_10"] == pytest.approx(ours["all"], abs=1e-4)
    assert scores["encoder"]["called"] == "m3edge/m3-mini-int8-dense"


def mteb_environment() -> Path:
    """build/mteb: mteb's own packages first, and after them those of this environment."""
    environment = ROOT / "build" / "mteb"
    done = environment / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
        # torch first: another package's range would take a build with gigabytes of CUDA
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", "torch==2.13.0"], check=True)
        subprocess.run([*pip, "mteb>=2.10"], check=True)
        own = next((environment / "lib").glob("python*/site-packages"))
        (own / "base.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        done.touch()
    return environment
