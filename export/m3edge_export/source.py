"""Where a checkpoint comes from: a local folder, or a model's id on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from m3edge.errors import FormatError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]


def locate_checkpoint(source: str | Path, small_files: Sequence[str]) -> tuple[Path, str, str]:
    """A source's folder, name and revision; what looks like `owner/name` and is no folder is fetched from the hub.

    small_files: names of what a checkpoint has besides the encoder's weights
    Raises FormatError when there is no such folder and the hub does not give it.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, folder.resolve().name, ""
    if folder.exists() or not _HUB_ID.fullmatch(str(source)):
        raise FormatError(
            f"{source}: no such checkpoint; give a folder, or an id of the Hugging Face hub such as BAAI/bge-m3"
        )
    return _fetch_from_hub(str(source), small_files)


def _fetch_from_hub(source: str, small_files: Sequence[str]) -> tuple[Path, str, str]:
    """Download what an export needs; the weights as safetensors where there are any, else as a PyTorch pickle."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, allow_patterns=[*small_files, *_SAFETENSORS]))
        commit = folder.name  # the hub's cache keeps a snapshot in a folder named after its commit
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(source, revision=commit, allow_patterns=_PICKLES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FormatError(
            f"{source}: is no local folder and could not be fetched from the Hugging Face hub ({reason}); "
            "check the id, or download the model elsewhere and give its folder"
        ) from error
    return folder, source, commit
