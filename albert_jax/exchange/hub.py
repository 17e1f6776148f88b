"""Fetch models from the Hugging Face hub into the hub's cache, and check them against their published SHA-256."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from albert_jax.config import InputError, first_line


def fetch(name: str, revision: str, patterns: tuple[str, ...]) -> tuple[Path, str]:
    """Fetch the files of a model that match `patterns`; without network, take them from the cache.

    Args:
      name: such as `albert/albert-base-v2`.
      revision: a branch, tag or commit; "" means the newest commit of the main branch.
      patterns: of file names.

    Returns:
      The folder in the cache, and its commit.

    Raises:
      InputError: no such model, no weights that we can read, the hub cannot be reached, or the SHA-256 of a file differs.
    """
    try:
        folder = Path(
            snapshot_download(name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns="*/*")
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise InputError(f"{name}: no such folder, and the hub cannot be reached ({first_line(error)[:160]})") from None
    except Exception as error:  # Errors of its HTTP library come through too, and differ between versions.
        raise InputError(f"{name}: no such folder, and the hub cannot provide it ({first_line(error)[:160]})") from None
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    if not any(part in path.name for path in paths for part in (".safetensors", "pytorch_model.bin")):
        names = ", ".join(path.name for path in paths) or "nothing"
        raise InputError(
            f"{name}: no model.safetensors on the hub (files that can be read: {names}); if it has pytorch_model.bin and "
            "you trust its source, convert it: 'albert-jax convert NAME TARGET --allow-pickle'"
        )
    for path in paths:
        blob = path.resolve()
        # The cache names a large file by its published SHA-256, and a small one by a Git hash, which is shorter.
        if re.fullmatch("[0-9a-f]{64}", blob.name):
            with blob.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != blob.name:
                message = f"{blob}: SHA-256 is {digest[:12]}.., published is {blob.name[:12]}.."
                raise InputError(f"{message}; remove the file and try again")
    return folder, folder.name
