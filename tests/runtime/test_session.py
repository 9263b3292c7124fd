"""What a session decides about the CPU it runs on, tried on CPUs that are not at hand."""

import onnxruntime
import pytest

from m3edge import session
from m3edge.session import available_cpus, multiplies_bytes, products_saturate, session_options


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu sse2 avx2", True),
        ("AMD64", "fpu avx2 avx512f avx512bw", True),
        ("x86_64", "fpu avx2 avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("aarch64", "", False),
        ("arm64", "", False),
    ],
)
def test_only_x86_without_vnni_saturates(tmp_path, machine, flags, saturates):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert products_saturate(machine, tmp_path / "cpuinfo") is saturates


def test_an_x86_that_says_nothing_of_itself_is_taken_to_saturate(tmp_path):
    assert products_saturate("x86_64", tmp_path / "nothing")
    assert not multiplies_bytes("x86_64", tmp_path / "nothing")


@pytest.mark.parametrize(("machine", "gains"), [("x86_64", True), ("aarch64", False)])
def test_only_an_x86_with_vnni_is_known_to_gain_from_openvino(tmp_path, machine, gains):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512_vnni\n")
    assert multiplies_bytes(machine, tmp_path / "cpuinfo") is gains


@pytest.mark.parametrize("saturates", [True, False])
def test_weights_are_turned_unsigned_only_where_products_saturate(monkeypatch, saturates):
    monkeypatch.setattr(session, "products_saturate", lambda: saturates)
    options = session_options(onnxruntime, 1)
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):  # onnxruntime's answer for an entry that was never made
            options.get_session_config_entry("session.x64quantprecision")


def test_at_least_one_cpu_is_available():
    assert available_cpus() >= 1
