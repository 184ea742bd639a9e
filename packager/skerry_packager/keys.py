"""The engineer's signing keys as files: EC P-256, the private one readable by its owner only.

A key file is never overwritten, and a half-made pair is never left behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from skerry_contract.errors import AccessError, ConfigError, ConflictError, InputError, StorageError

if TYPE_CHECKING:
    from skerry_contract.signing import EcdsaSigner, EcdsaVerifier

Key = TypeVar("Key")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """Where a new pair of keys is."""

    private_path: Path
    public_path: Path
    key_id: str
    """SHA-256 of the public PEM, in hex."""
    encrypted: bool


def init_keys(folder: Path, name: str, password: bytes | None = None) -> KeyPair:
    """Make ``NAME.key`` (mode 0600, encrypted if there is a password) and ``NAME.pub``.

    Raises:
        InputError: the name cannot be a file name, or the password is empty.
        ConflictError: one of the files exists.
        StorageError: the folder cannot be written to.
    """
    from skerry_contract.signing import generate_private_key, load_signer

    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} cannot name a key", hint="Use 1 to 64 letters, digits, '.', '_' or '-'."
        )
    if password is not None and not password:
        raise InputError(
            "the password is empty", hint="Set one, or leave the option out for a key without password."
        )
    pem = generate_private_key(password)
    verifier = load_signer(pem, password).verifier
    pair = KeyPair(
        private_path=folder / f"{name}.key",
        public_path=folder / f"{name}.pub",
        key_id=verifier.key_id,
        encrypted=password is not None,
    )
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data, mode in ((pair.private_path, pem, 0o600), (pair.public_path, verifier.pem, 0o644)):
            _write_new(path, data, mode, made)
    except FileExistsError as error:
        _remove(made)
        raise ConflictError(
            f"{error.filename} exists; a key is never overwritten",
            hint="Choose another --name or --out, or move the old pair away if it is no longer needed.",
        ) from error
    except OSError as error:
        _remove(made)
        raise StorageError(
            f"cannot write the keys to {folder}: {error.strerror or error}",
            hint="Choose another folder by --out.",
        ) from error
    return pair


def read_signer(path: Path, password: bytes | None = None) -> EcdsaSigner:
    """The private key in a file.

    Raises:
        InputError: no such file.
        ConfigError: not a P-256 private key in PEM.
        AccessError: the password is missing or wrong.
    """
    from skerry_contract.signing import load_signer

    pem = _read(path)
    if b"PUBLIC KEY" in pem[:200]:
        raise ConfigError(
            f"{path} holds a public key", hint="Sign with the private one, the file that ends in .key."
        )
    return _named(path, lambda: load_signer(pem, password))


def read_verifier(path: Path) -> EcdsaVerifier:
    """The public key in a file. Raises `InputError` or `ConfigError` as `read_signer`."""
    from skerry_contract.signing import load_verifier

    pem = _read(path)
    if b"PRIVATE KEY" in pem[:200]:
        raise ConfigError(
            f"{path} holds a private key",
            hint="Verify with the public one, the file that ends in .pub. Keep this one.",
        )
    return _named(path, lambda: load_verifier(pem))


def read_verifiers(paths: Sequence[Path]) -> list[EcdsaVerifier]:
    """All of them; any one is enough to accept a signature."""
    return [read_verifier(path) for path in paths]


def needs_password(path: Path) -> bool:
    """Whether the private key in a file is encrypted (PKCS #8)."""
    return b"ENCRYPTED PRIVATE KEY" in _read(path)[:200]


def open_to_others(path: Path) -> bool:
    """Whether a private key can be read by other users of the machine; a public one may be."""
    return bool(path.stat().st_mode & 0o077) and b"PUBLIC KEY" not in _read(path)[:200]


def password_from(variable: str) -> bytes:
    """A password out of an environment variable.

    Raises:
        InputError: it is not set, or empty.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise InputError(
            f"the environment variable {variable} holds no password", hint=f"Set {variable}, and export it."
        )
    return value.encode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise InputError(
            f"cannot read the key {path}: {error.strerror or error}",
            hint="'skerry keys init' makes a pair of keys.",
        ) from error


def _named(path: Path, load: Callable[[], Key]) -> Key:
    """The same errors, with the file's name in front."""
    try:
        return load()
    except (AccessError, ConfigError) as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from error


def _write_new(path: Path, data: bytes, mode: int, made: list[Path]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    made.append(path)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
