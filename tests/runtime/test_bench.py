"""`m3edge bench`, run as users run it, on the real mini model and a small data set."""

import json
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from m3edge import Encoder
from m3edge.bench.plots import PLOTS, write_plots
from m3edge.bench.run import BenchSettings, _named, bench
from m3edge.bench.stopwatch import PARTS, SearchClock
from m3edge.cli import main
from m3edge.errors import FormatError, M3EdgeError
from m3edge.evaluation import METRICS, evaluate, read_beir

pytest.importorskip("ir_measures")

AXES = {
    "quality-latency": ("median query, milliseconds", "nDCG@10"),
    "quality-size": ("model folder, megabytes", "nDCG@10"),
    "latency-split": ("milliseconds", *PARTS),
    "growth": ("documents", "milliseconds", "megabytes"),
}


@pytest.fixture(scope="module")
def report_folder(small_beir, mini_int8, mini_models, tmp_path_factory):
    """What `m3edge bench` leaves for two precisions."""
    out = tmp_path_factory.mktemp("bench") / "out"
    models = [str(mini_int8), str(mini_models["int4"])]
    assert main(["bench", *models, "--data", str(small_beir), "--out", str(out), "--rounds", "1"]) == 0
    return out


@pytest.fixture
def lines():
    """Collects what a run says before each step."""
    return []


def test_the_report_holds_every_measure_of_every_model(report_folder, mini_int8, small_beir):
    report = json.loads((report_folder / "bench.json").read_bytes())
    assert [model["name"] for model in report["models"]] == ["mini-int8", "mini-int4"]
    assert report["machine"]["cpu"]
    for model in report["models"]:
        assert set(model["parts_ms"]) == set(PARTS)
        assert 0 < model["latency_ms"]["p50"] <= model["latency_ms"]["p95"] <= model["latency_ms"]["p99"]
        assert model["start_s"]["total"] > model["start_s"]["load model"] > 0
        assert model["encode_peak_mb"] >= model["query_peak_mb"] > 50
        assert model["tokens_per_s"] > model["documents_per_s"] > 0
        assert model["size_bytes"] > 50e6
        assert model["index"]["peak_mb"] > 50
        assert [row["documents"] for row in model["index"]["growth"]] == [3, 6, 12, 24]
    expected = evaluate(Encoder.load(mini_int8), read_beir(small_beir))
    assert report["models"][0]["quality"] == expected.modes
    assert set(expected.modes["all"]) == set(METRICS)


def test_the_tables_name_every_model_and_the_pictures_can_be_read(report_folder):
    text = (report_folder / "bench.md").read_text()
    assert text.count("| mini-int8 |") == text.count("| mini-int4 |") == 5
    assert all(f"\n| {metric} | dense |" in text for metric in ("nDCG@10", "Recall@100", "MRR@10"))
    pytest.importorskip("matplotlib")
    for name in PLOTS:
        assert (report_folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        words = " ".join(ElementTree.parse(report_folder / f"{name}.svg").getroot().itertext())
        assert "mini-int8" in words
        assert "mini-int4" in words
        assert all(label in words for label in AXES[name])


@pytest.mark.parametrize("n_models", [1, 7])
def test_nothing_written_in_a_picture_covers_anything_else_written_there(report_folder, n_models, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    report = json.loads((report_folder / "bench.json").read_bytes())
    model = report["models"][0]
    names = (f"a-model-folder-with-a-long-name-{number}" for number in range(n_models))
    report["models"] = [{**model, "name": name} for name in names]
    drawn = []
    monkeypatch.setattr(Text, "draw", lambda text, renderer: drawn.append((text, text.get_window_extent(renderer))))

    def look(figure, path, **options):
        figure.draw_without_rendering()  # lays out
        drawn.clear()
        figure.draw_without_rendering()
        boxes = [(text.get_text(), box) for text, box in drawn if text.get_visible() and text.get_text().strip()]
        assert len(boxes) > 10
        for number, (text, box) in enumerate(boxes):
            assert min(box.x0, figure.bbox.x1 - box.x1) > -1, (path, text)  # within the picture
            for other, other_box in boxes[:number]:
                width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
                height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
                assert min(width, height) < 1, (path, text, other)

    monkeypatch.setattr(Figure, "savefig", look)
    write_plots(report, report_folder)


def test_a_finished_step_is_not_repeated_and_one_under_other_settings_is(report_folder, mini_int8, small_beir, lines):
    before = json.loads((report_folder / "bench.json").read_bytes())["models"][0]
    again = bench([mini_int8], BenchSettings(data=small_beir, rounds=1), report_folder, say=lines.append)
    assert lines == []
    assert again["models"] == [before]
    bench([mini_int8], BenchSettings(data=small_beir, rounds=2), report_folder, say=lines.append)
    assert lines == ["mini-int8: round-2"]
    shortened = BenchSettings(data=small_beir, rounds=1, queries=3, documents=5)
    report = bench([mini_int8], shortened, report_folder, say=lines.append)
    assert lines[1:] == ["mini-int8: index", "mini-int8: quality", "mini-int8: round-1"]
    assert (report["documents"], report["queries"]) == (5, 3)


def test_a_killed_run_goes_on_where_it_was(mini_int8, small_beir, tmp_path, lines):
    command = ["bench", str(mini_int8), "--data", str(small_beir), "--out", str(tmp_path), "--rounds", "1"]
    done = tmp_path / "steps" / "mini-int8" / "index.json"
    process = subprocess.Popen([sys.executable, "-m", "m3edge.cli", *command], stderr=subprocess.DEVNULL)
    while not done.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    bench([mini_int8], BenchSettings(data=small_beir, rounds=1), tmp_path, say=lines.append)
    assert lines == ["mini-int8: quality", "mini-int8: round-1"]


def test_the_clock_counts_the_search_that_users_run(index, small_beir):
    dataset = read_beir(small_beir)
    index.add([{"id": id_, "text": text} for id_, text in dataset.corpus.items()])
    clock = SearchClock(index)
    for options in ({}, {"weights": (1, 0, 0)}, {"weights": (0, 1, 0), "lexical": "bm25"}):
        expected = index.search("how do I compress a file", 5, **options)
        hits, times = clock.search("how do I compress a file", 5, **options)
        assert hits == expected
        assert sum(times[part] for part in PARTS) == pytest.approx(times["total"])
        assert all(times[part] >= 0 for part in PARTS)
        assert times["encode"] > times["tokenise"] > 0
        for part, weight in zip(("dense", "sparse", "MaxSim"), options.get("weights", (1, 1, 1)), strict=True):
            assert (times[part] > 0) == (weight > 0)


def test_peak_memory_is_that_of_the_process_alone():
    child = "from m3edge.bench.memory import peak_memory_mb as peak; print(peak())"
    parent = (
        "import subprocess, sys; from m3edge.bench.memory import peak_memory_mb as peak\n"
        "block = b'x' * 300_000_000\n"
        "print(peak(), subprocess.run([sys.executable, '-c', sys.argv[1]], stdout=-1, text=True).stdout)"
    )
    result = subprocess.run([sys.executable, "-c", parent, child], capture_output=True, text=True, check=True)
    own, childs = map(float, result.stdout.split())
    assert own > 300
    assert childs < 200


def test_what_cannot_be_measured_is_refused_by_name(mini_int8, small_beir, tmp_path, capsys):
    with pytest.raises(FormatError, match=r"corpus.jsonl: no such file"):
        bench([mini_int8], BenchSettings(data=tmp_path), tmp_path / "out")
    with pytest.raises(FormatError, match=str(tmp_path)):
        bench([tmp_path], BenchSettings(data=small_beir), tmp_path / "out")
    with pytest.raises(M3EdgeError, match=r"step 'index' failed: .*provider 'cuda'"):
        bench([mini_int8], BenchSettings(data=small_beir, provider="cuda"), tmp_path / "out")
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        BenchSettings(data=small_beir, rounds=0)
    with pytest.raises(TypeError, match="models must be one or more model folders"):
        bench([], BenchSettings(data=small_beir), tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["bench", str(mini_int8), "--data", str(small_beir), "--queries", "0"])
    assert "expected a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_results_that_cannot_be_put_there_are_refused_before_anything_is_read(mini_int8, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "sub" / "out"):
        assert main(["bench", str(mini_int8), "--data", "no-data", "--out", str(out)]) == 1
        assert f"{file}: expected a folder for results, or none; this is a file" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_two_folders_of_one_name_are_told_apart():
    assert list(_named(["a/mini", "b/mini", "c/mini"])) == ["mini", "mini-2", "mini-3"]
