"""The fleet's director key: it says which signed bundle a device shall run, and nothing about what is in one.

Made at the first start; a device accepts desired states of this key alone. Who loses it must configure every
device again, so it belongs into the backup of the data folder.
"""

from __future__ import annotations

from pathlib import Path

from skerry_contract.envelope import seal
from skerry_contract.messages import DESIRED_PAYLOAD_TYPE, DesiredState, encode
from skerry_contract.signing import EcdsaSigner, generate_private_key, load_signer

from .files import read_or_create


class Director:
    def __init__(self, signer: EcdsaSigner) -> None:
        self._signer = signer

    @classmethod
    def open(cls, path: Path) -> Director:
        """Raises `StorageError`: the file cannot be read or made; `ConfigError`: it holds no key."""
        return cls(load_signer(read_or_create(path, generate_private_key)))

    @property
    def public_pem(self) -> str:
        return self._signer.verifier.pem.decode()

    def sign(self, state: DesiredState) -> bytes:
        """The envelope that goes to ``dn/des``."""
        return seal(DESIRED_PAYLOAD_TYPE, encode(state), self._signer)
