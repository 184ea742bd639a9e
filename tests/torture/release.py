"""What a child has to know of a bundle; imports no engine and nothing that makes models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from skerry_contract.digests import Digest

NAME: Final = "torture"
"""Of the model in every bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A signed bundle file, and what an order of the fleet says of it; plain JSON."""

    number: int
    file: str
    digest: Digest
    signature: Digest
    manifest_size: int
    signature_size: int

    @property
    def version(self) -> str:
        return version_of(self.number)


def version_of(number: int) -> str:
    return f"{number}.0.0"


def load_release(folder: Path, number: int) -> Release:
    """A release that was made before."""
    return msgspec.json.decode((folder / f"{number}.json").read_bytes(), type=Release)
