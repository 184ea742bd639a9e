"""A bundle file as a generation folder of this process, for in-process use.

The same verification as on a device, by the same child process, and the same layout: what is not signed by a
given key, or damaged, never reaches an engine. The folder is private to this user and gone after the block.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skerry_contract.errors import InputError, SignatureError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.manifest import parse_manifest

from .agent import machine, trust, trust_process
from .agent.installer import stage
from .agent.slots import ModelSlots
from .agent.store import Store
from .config import BudgetsConfig

_KEY_BYTES: Final = 64 * 1024
Key = str | Path
"""Text of a public key in PEM, or the path of a file with it."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    folder: Path
    """The generation."""
    reason: str
    """Why this variant; a sentence for people."""


@contextmanager
def unpacked(
    path: Path, keys: Sequence[Key], *, device_class: str = "", ram_budget_bytes: int = 0
) -> Iterator[Unpacked]:
    """Verify a bundle file and unpack the variant that this machine runs.

    Args:
        keys: of the engineers who may sign.
        device_class, ram_budget_bytes: as in a device's configuration; they choose the variant.

    Raises:
        BundleError: it is damaged, or not signed by one of the keys; its children say which.
        IncompatibleError: no variant runs here.
        InputError: the file or a key cannot be read.
        StorageError: there is no room for it.
    """
    if not keys:
        raise SignatureError(
            f"{path.name} cannot be verified without a key",
            hint="Give the engineer's public key: Model.open(path, key='engineer.pub').",
        )
    engineers = tuple(_pem(key) for key in keys)
    with tempfile.TemporaryDirectory(prefix="skerry-model-") as scratch:
        store = Store(Path(scratch) / "store")
        device = trust.Device(
            hardware=machine.hardware(device_class),
            engines=machine.engines(),
            ram_budget_bytes=ram_budget_bytes,
        )
        try:
            file = path.open("rb")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        with file:
            answer = trust_process.import_file(
                trust.ImportFile(
                    fd=file.fileno(),
                    store=str(store.folder),
                    engineers=engineers,
                    floors={},
                    device=device,
                )
            )
        manifest = parse_manifest(store.read(answer.manifest, DEFAULT_LIMITS.manifest_bytes))
        generation = stage(
            ModelSlots(Path(scratch) / "model", store),
            manifest,
            answer.manifest,
            answer.signature,
            (answer.variant, answer.reason),
            BudgetsConfig(ram_bytes=ram_budget_bytes),
        )
        yield Unpacked(generation.folder, answer.reason)


def _pem(key: Key) -> str:
    if isinstance(key, str) and "-----BEGIN" in key:
        return key
    try:
        with Path(key).open("rb") as file:
            return file.read(_KEY_BYTES).decode()
    except (OSError, ValueError) as error:
        raise InputError(f"the key {key} cannot be read: {error}", hint="Give a .pub file.") from error
