"""Runs a script in a process of its own, as a program starts where m3edge is installed."""

from __future__ import annotations

import os
import subprocess
import sys


def fresh_process(script: str, *arguments: object) -> str:
    """What it prints. Raises CalledProcessError when it fails.

    Compiled modules are kept, as an installation keeps them, whatever PYTHONDONTWRITEBYTECODE says here: without them
    an import is mostly compiling. So what measures a start leaves out the first.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
