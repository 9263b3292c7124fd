"""Run a command as on a CPU without AMX, whose products of bytes then are AVX512-VNNI's: Linux on x86-64.

    python benchmarks/without_amx.py python benchmarks/engines.py models/mini-fp32 models/mini-int8

Programs have to ask Linux before they use AMX's tiles. The command is told no, by a filter on that one system call, and
so are onnxruntime, OpenVINO and m3edge in it: each then takes the best that the CPU has otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import struct

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # prctl's
_ARCH_PRCTL, _ASK_FOR_TILES = 158, 0x1023  # the system call on x86-64, and its first argument
_LOAD, _JUMP_UNLESS_EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of the filter
_NUMBER_AT, _ARGUMENT_AT = 0, 16  # bytes, of what a filter sees of a call
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args().command
    if not command:
        parser.error("a command is needed")
    refuse_tiles()
    os.execvp(command[0], command)


def refuse_tiles() -> None:
    """From here on nobody in this process, or started by it, gets AMX's tiles. OSError where Linux has no filters."""
    instructions = b"".join(
        struct.pack("HBBI", code, equal, unequal, value)
        for code, equal, unequal, value in (
            (_LOAD, 0, 0, _NUMBER_AT),
            (_JUMP_UNLESS_EQUAL, 0, 3, _ARCH_PRCTL),
            (_LOAD, 0, 0, _ARGUMENT_AT),
            (_JUMP_UNLESS_EQUAL, 0, 1, _ASK_FOR_TILES),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    held = ctypes.create_string_buffer(instructions)
    program = _Program(len(instructions) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "this system has no filters for system calls")


if __name__ == "__main__":
    main()
