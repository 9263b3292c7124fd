"""Progress bars, all of one kind: shown at will, or only where they help."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int | None, unit: str, description: str, show: bool | None) -> tqdm:
    """A bar on stderr. show: True or False; None shows it on a terminal once the job took a second."""
    from tqdm import tqdm  # late: a fifth of the time that `import m3edge` would take

    if show is None:
        return tqdm(total=total, unit=unit, desc=description, disable=None, delay=1)
    return tqdm(total=total, unit=unit, desc=description, disable=not show)
