"""The cache of compiled models: what it saves, what makes it stale, and what it does without."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
from openvino_results import assert_same
from sample_texts import TEXTS

from m3edge import Encoder, FormatError, openvino_engine
from m3edge.model_folder import WEIGHTS, write_manifest

openvino = pytest.importorskip("openvino", reason="the engine under test is not installed")


def load_quietly(folder: Path, cache: Path) -> Encoder:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Encoder.load(folder, "openvino", verify=False, cache=cache)


@pytest.fixture(scope="module")
def written_cache(mini_openvino: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that was not there before."""
    cache = tmp_path_factory.mktemp("openvino") / "new" / "cache"
    load_quietly(mini_openvino, cache)
    return cache


@pytest.fixture
def cached(written_cache: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A cache folder of one's own and the one model in it."""
    cache = Path(shutil.copytree(written_cache, tmp_path / "cache"))
    (blob,) = cache.iterdir()
    return cache, blob


def test_a_cached_model_gives_the_same_and_is_not_written_again(mini_openvino, cached, together):
    cache, blob = cached
    before = blob.stat().st_mtime_ns
    assert_same(load_quietly(mini_openvino, cache).encode_passages(TEXTS), together)
    assert blob.stat().st_mtime_ns == before
    assert list(cache.iterdir()) == [blob]


@pytest.mark.parametrize("damage", ["a byte", "truncated", "of another format"])
def test_a_damaged_cache_is_rebuilt(mini_openvino, cached, together, damage):
    cache, blob = cached
    whole = blob.read_bytes()
    middle = len(whole) // 2
    blob.write_bytes({
        "a byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "truncated": whole[:middle],
        "of another format": b"<xml>",
    }[damage])  # fmt: skip
    with pytest.warns(RuntimeWarning, match="damaged; compiling the model again"):
        rebuilt = Encoder.load(mini_openvino, "openvino", verify=False, cache=cache)
    assert_same(rebuilt.encode_passages(TEXTS[:3]), together[:3])
    assert_same(load_quietly(mini_openvino, cache).encode_passages(TEXTS[:3]), together[:3])


def test_another_model_in_the_same_folder_is_not_taken_from_the_cache(copied, cached):
    cache, _ = cached
    info = Encoder.load(copied, "cpu").info
    (copied / "note.txt").write_text("a file that the first folder has not")
    write_manifest(copied, info)
    load_quietly(copied, cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("verify", [True, False])
def test_a_model_of_damaged_weights_is_not_kept(copied, tmp_path, verify):
    """Its name would be that of the whole folder's, which the next start would take it for."""
    with (copied / WEIGHTS).open("r+b") as file:
        file.seek(-1_000_000, os.SEEK_END)
        file.write(bytes(100_000))
    refused = pytest.raises(FormatError, match="altered") if verify else nullcontext()
    with pytest.warns(RuntimeWarning, match="not keeping the compiled model .*altered"), refused:
        Encoder.load(copied, "openvino", verify=verify, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_another_number_of_threads_is_another_compiled_model(mini_openvino, cached):
    cache, _ = cached
    Encoder.load(mini_openvino, "openvino", verify=False, cache=cache, n_threads=7)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(mini_openvino, tmp_path, together):
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.warns(RuntimeWarning, match="cannot keep the compiled model"):
        encoder = Encoder.load(mini_openvino, "openvino", verify=False, cache=tmp_path / "file")
    assert_same(encoder.encode_passages(TEXTS[:3]), together[:3])


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="the superuser may write anywhere")
def test_a_read_only_cache_folder_is_done_without(mini_openvino, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    with pytest.warns(RuntimeWarning, match="cannot keep the compiled model .*Permission denied"):
        Encoder.load(mini_openvino, "openvino", verify=False, cache=folder)


def test_a_full_or_read_only_disk_costs_the_cache_only(mini_openvino, tmp_path, monkeypatch):
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(openvino_engine, "write_atomically", refuse)
    with pytest.warns(RuntimeWarning, match="cannot keep the compiled model .*Read-only file system"):
        encoder = Encoder.load(mini_openvino, "openvino", verify=False, cache=tmp_path)
    assert encoder.provider == "openvino"


def test_a_cached_model_is_mapped_and_not_copied(mini_openvino, written_cache):
    """Its weights are the file's pages, which several processes share."""
    code = (
        "import sys; from pathlib import Path; from m3edge.session import open_session\n"
        "session = open_session(Path(sys.argv[1]), 'openvino', cache=Path(sys.argv[2]))\n"
        "maps = Path('/proc/self/maps').read_text()\n"
        "print(sys.argv[2] in maps)\n"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux tells what is mapped")
    command = [sys.executable, "-c", code, str(mini_openvino), str(written_cache)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"
