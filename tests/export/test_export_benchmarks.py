"""The scripts in benchmarks/ that need the export's packages, on little data: each leaves what its README promises."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3edge.openvino_engine import has_bfloat16

pytest.importorskip("torch")

RunSmall = Callable[..., dict[str, Any]]
SHAPES = {"2x8": (2, 8), "1x16": (1, 16)}


def test_every_precision_is_compared_with_fp32(
    run_small: RunSmall, mini_fp32: Path, mini_int8: Path, twelve: Path
) -> None:
    arguments = (mini_fp32, mini_int8, "--data", twelve)
    report = run_small("fidelity", *arguments, result="fidelity-m3-mini.json", PASSAGES=1, QUESTIONS=1)
    assert report["texts"] == 24
    assert report["precisions"].keys() == {"int8"}
    assert 0.999 < report["precisions"]["int8"]["dense_cosine_mean"] < 1


def test_two_engines_are_timed_and_compared_on_one_model(
    run_small: RunSmall, mini_fp32: Path, mini_openvino: Path, twelve: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    arguments = (mini_fp32, mini_openvino, "--data", twelve, "--rounds", 1, "--texts", 1)
    report = run_small("engines", *arguments, result="engines-m3-mini.json", SHAPES=SHAPES, STARTS=1)
    engines = {"native int8", "onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino static int8"}
    if has_bfloat16(openvino.Core()):
        engines |= {"openvino fp32 in bfloat16", "openvino static int8, the rest in bfloat16"}
    assert all(row.keys() == engines for row in report["speed"].values())
    assert report["speed"].keys() == SHAPES.keys()
    starts = {"native", "onnxruntime", "openvino", "openvino, cached", "openvino directly, cached"}
    assert report["start_seconds"].keys() == starts
    assert min(row["dense_cosine_worst"] for row in report["quality"].values()) > 0.996


def test_models_on_a_device_are_compared_with_the_cpu(run_small: RunSmall, mini_fp32: Path, mini_int8: Path) -> None:
    """The CPU stands for the device: what is timed and compared is the same."""
    arguments = (mini_fp32, mini_int8, "--provider", "cpu", "--rounds", 1)
    report = run_small("gpu", *arguments, result="gpu-m3-mini.json", SHAPES=SHAPES)
    for row in report["shapes"].values():
        assert row.keys() == {"cpu", "cpu fp32", "cpu int8"}
        assert row["cpu fp32"]["worst_cosine"] > 0.99999
        assert row["cpu int8"]["worst_cosine"] > 0.999


def test_ways_of_rounding_to_four_bits_are_compared(
    run_small: RunSmall, tiny_source: Path, twelve: Path, tmp_path: Path
) -> None:
    from m3edge_export import cli

    assert cli.main(["onnx", str(tiny_source), str(tmp_path / "tiny"), "--precision", "fp32"]) == 0
    (tmp_path / "build").mkdir()
    run = {"calibration_texts": lambda: ["the file", "filing the file"], "ROOT": tmp_path}
    arguments = (tmp_path / "tiny", twelve / "xquad-en", "--texts", twelve, "--each", 2, "--queries", 2)
    report = run_small("four_bits", *arguments, result="four-bits.json", **run)
    assert report["roundings"].keys() == {"nearest", "searched scales", "GPTQ"}
    assert all(0.9 < row["dense_cosine_mean"] < 1 for row in report["roundings"].values())
    assert report["fp32"]["ndcg"].keys() == report["roundings"]["GPTQ"]["ndcg"].keys()


def test_long_documents_are_also_read_with_mcls(
    run_small: RunSmall, tiny_source: Path, twelve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from m3edge_export import cli

    assert cli.main(["onnx", str(tiny_source), str(tmp_path / "tiny"), "--precision", "fp32"]) == 0
    arguments = (tmp_path / "tiny", twelve, "--aligned", "none-", "--long", "xquad-en", "xquad-de", "--mcls", 8)
    report = run_small("tables", *arguments, result="tables-tiny.json")
    assert [row["unit"] for row in report["rows"]] == ["document", "document, MCLS", "best passage"] * 2
    plain, mcls = report["rows"][:2]
    assert plain["nDCG@10"]["dense"] != mcls["nDCG@10"]["dense"]
    assert "The same with MCLS" in capsys.readouterr().out


def test_mcls_is_measured_on_a_sibling_that_pools_by_its_first_token(
    run_small: RunSmall, tiny_source: Path, twelve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"query": f"file {n}", "positive": f"the file {n} " * 5, "lang": "en"} for n in range(9)]
    (tmp_path / "train").mkdir()
    with gzip.open(tmp_path / "train" / "files.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    small_run = ("--sets", "xquad-en", "--steps", 3, "--work", tmp_path / "work")
    arguments = (tiny_source, tmp_path / "train", twelve, *small_run)
    small = {"TRAINED_TOKENS": 16, "POSITIONS": 130, "CUTS": (64, 128), "INTERVALS": (None, 8)}
    report = run_small("mcls", *arguments, result="mcls.json", **small)
    assert [(row["cut"], row["interval"]) for row in report["rows"]] == [
        (64, None), (64, None), (64, 8), (128, None), (128, 8),
    ]  # fmt: skip
    assert report["training"]["cosine"]["3"] > 0
    plain, mcls = (row["nDCG@10"] for row in report["rows"][1:3])
    assert 0 <= min(plain, mcls) <= max(plain, mcls) <= 1
    assert "| first token | 128 | every 8 |" in capsys.readouterr().out


def test_at_full_size_we_are_timed_beside_the_peer_and_the_chips_limit(
    run_small: RunSmall, mini_fp32: Path, mini_openvino: Path, tmp_path: Path
) -> None:
    """The mini model stands for the large one, and for the peer's, which take 15 GB and many minutes to make."""
    pytest.importorskip("openvino")
    for name, folder in {"m3-fp32": mini_fp32, "m3-int8": mini_openvino, "peer": mini_openvino}.items():
        shutil.copytree(folder, tmp_path / "work" / name)
    (tmp_path / "work" / "checkpoint").mkdir()
    small = {"WORK": tmp_path / "work", "LAYERS": 12, "HIDDEN": 384, "FFN": 1536, "LONGEST": 64, "SHAPES": SHAPES}
    arguments = ("--rounds", 1, "--precisions", "fp32", "--only", *SHAPES, "memory")
    report = run_small("full_size", *arguments, result="full-size.json", **small)
    for row in report["speed"].values():
        assert row["ms"].keys() == {"fp32", "int8", "native", "openvino", "peer", "products"}
        assert row["int8_speed_over"].keys() == {"fp32", "native", "openvino", "peer"}
        assert row["share_of_products"]["int8"] > 0
    measured = {f"{name} {length} tokens" for name in ("int8", "native", "openvino", "fp32") for length in (32, 64)}
    assert report["peak_mb"].keys() == measured
