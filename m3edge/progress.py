"""Progress bars, all of one kind: shown at will, or only where they help."""

from __future__ import annotations

from typing import Protocol


class Bar(Protocol):
    """What a job tells of its progress, in a `with` block around it."""

    def update(self, n: int = 1) -> object:
        """So many units more are done."""

    def __enter__(self) -> Bar: ...

    def __exit__(self, *error: object) -> object: ...


class _Hidden:
    """Shows nothing. tqdm's own hidden bar takes a sixth of a query's time outside of the model, its import more."""

    def update(self, n: int = 1) -> None:
        pass

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def progress_bar(total: int | None, unit: str, description: str, show: bool | None) -> Bar:
    """A bar on stderr. show: True or False; None shows it on a terminal once the job took a second."""
    if show is False:
        return _Hidden()
    from tqdm import tqdm  # late: a fifth of the time that `import m3edge` would take

    if show is None:
        bar: Bar = tqdm(total=total, unit=unit, desc=description, disable=None, delay=1)
    else:
        bar = tqdm(total=total, unit=unit, desc=description)
    return bar
