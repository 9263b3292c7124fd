"""New folders for what takes hours to make: a place that cannot be taken is found out first, and several come together
or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from m3edge.files import new_folder, require_free


def require_place(target: Path) -> None:
    """Raise FileExistsError when new_folder could not put a folder at `target` in the end."""
    if target.is_symlink():
        raise FileExistsError(f"{target} is a link, which no folder can replace; give the place itself")
    if target.is_mount():
        raise FileExistsError(
            f"{target} is a mount point, which no folder can replace; give a new folder in it, such as "
            f"{target / 'model'}"
        )
    require_free(target)


@contextmanager
def new_folders(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """new_folder for several at once: when one of them cannot take its place, those that have are removed again."""
    for target in targets:
        require_place(target)
    shown: list[Path] = []
    try:
        with ExitStack() as stack:
            folders = []
            for target in targets:
                # Before new_folder, so that it is called after it has shown its folder, or failed to.
                stack.push(lambda kind, *_, target=target: None if kind else shown.append(target))
                folders.append(stack.enter_context(new_folder(target)))
            yield folders
    except BaseException:
        for target in shown:
            shutil.rmtree(target, ignore_errors=True)
        raise
