"""Bundle files on the engineer's disk: describe one without trusting it, verify it, unpack it.

Nothing of a bundle is written before its signature verified, unless the caller gives up the signature in so
many words; its framing and every digest are checked in any case. An unpacked folder is there whole or not
at all, and every name in it is made from a digest, so nothing in a bundle chooses a path.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from skerry_contract.bundle import BLOB_FOLDER, MANIFEST_NAME, SIGNATURE_NAME, SUFFIX, BundleReader
from skerry_contract.digests import Digest, hex_of
from skerry_contract.envelope import Verifier
from skerry_contract.errors import (
    BundleFormatError,
    ConflictError,
    InputError,
    NotFoundError,
    SignatureError,
    StorageError,
)
from skerry_contract.limits import MIB
from skerry_contract.manifest import Manifest, bundle_digest, parse_manifest

_MAGIC_OFFSET, _MAGIC = 257, b"ustar\x00"
_MAX_CARD = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDescription:
    """What a bundle says of itself."""

    manifest: Manifest
    digest: Digest
    """Identity of the bundle."""
    key_hint: str
    """Key id that its signature names."""
    signed_by: str
    """Key id of the trusted key that signed it; empty if that was not checked."""
    file_bytes: int
    manifest_bytes: bytes
    signature: bytes


def looks_like_bundle(path: Path) -> bool:
    """Whether the file is a bundle rather than a model: by its name or its first bytes.

    Raises:
        InputError: it cannot be read.
    """
    with _opened(path) as stream:
        head = stream.read(512)
    return (
        path.suffix == SUFFIX
        or head.startswith(MANIFEST_NAME.encode() + b"\0")
        or head[_MAGIC_OFFSET : _MAGIC_OFFSET + 6] == _MAGIC
    )


def describe(path: Path) -> BundleDescription:
    """Read the framing, the manifest and all blobs, without looking at the signature.

    Raises:
        BundleFormatError, ManifestError: not a bundle, or damaged.
    """
    return _read(path, None, None)


def read_card(path: Path) -> str:
    """The model card in a bundle, without looking at the signature; its digest is checked.

    Raises:
        NotFoundError: the bundle has none.
        BundleFormatError, ManifestError: not a bundle, or damaged.
    """
    with _opened(path) as stream:
        reader = BundleReader(stream)
        manifest = parse_manifest(reader.manifest_bytes)
        card = manifest.model_card
        if card is None:
            raise NotFoundError(f"{path} has no model card", hint="'skerry inspect' shows its manifest.")
        if card.size > _MAX_CARD:
            raise BundleFormatError(f"the model card has {card.size} bytes; at most {_MAX_CARD} are shown")
        text = b""
        for ref, pieces in reader.blobs(manifest):
            if ref.digest == card.digest:
                text = b"".join(pieces)
    return text.decode(errors="replace")


def verify(path: Path, verifiers: Sequence[Verifier]) -> BundleDescription:
    """Check everything: the signature first, then the manifest, the framing and every blob's digest.

    Raises:
        SignatureError: unsigned, altered, or not by one of the keys.
        BundleFormatError, ManifestError: damaged.
    """
    return _read(path, verifiers, None)


def unpack(path: Path, folder: Path, verifiers: Sequence[Verifier] | None) -> BundleDescription:
    """Write ``manifest.json``, ``manifest.sig`` and ``blobs/`` into a new, or empty, folder.

    Args:
        path: the bundle.
        folder: must not exist, or be empty.
        verifiers: trusted keys; None gives up the signature.

    Raises:
        ConflictError: there is something in the folder.
        StorageError: it cannot be written.
        BundleError: as `verify`; then nothing is left behind.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} exists and is not an empty folder", hint="Choose a new one.")
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(6)}.part")
    try:
        (draft / BLOB_FOLDER).mkdir(parents=True)
        description = _read(path, verifiers, draft)
        (draft / MANIFEST_NAME).write_bytes(description.manifest_bytes)
        (draft / SIGNATURE_NAME).write_bytes(description.signature)
        os.replace(draft, folder)
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder}: {error.strerror or error}", hint="Choose another folder."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return description


def _read(path: Path, verifiers: Sequence[Verifier] | None, draft: Path | None) -> BundleDescription:
    """One pass over the file; blobs go to `draft` if there is one."""
    from skerry_contract.signing import signer_hint, verify_bundle

    with _opened(path) as stream:
        reader = BundleReader(stream)
        if verifiers is None:
            manifest = parse_manifest(reader.manifest_bytes)
        else:
            manifest = verify_bundle(reader.manifest_bytes, reader.signature, verifiers)
        for ref, pieces in reader.blobs(manifest):
            if draft is not None:
                with (draft / BLOB_FOLDER / hex_of(ref.digest)).open("xb") as file:
                    file.writelines(pieces)
        return BundleDescription(
            manifest=manifest,
            digest=bundle_digest(reader.manifest_bytes),
            key_hint=signer_hint(reader.signature),
            signed_by=_signer(reader, verifiers or ()),
            file_bytes=os.fstat(stream.fileno()).st_size,
            manifest_bytes=reader.manifest_bytes,
            signature=reader.signature,
        )


def _signer(reader: BundleReader, verifiers: Sequence[Verifier]) -> str:
    """Id of the key that signed: the hint in the signature file is only a claim."""
    from skerry_contract.signing import verify_bundle

    for verifier in verifiers:
        try:
            verify_bundle(reader.manifest_bytes, reader.signature, [verifier])
        except SignatureError:
            continue
        return verifier.key_id
    return ""


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.exists() and not path.is_file():
        raise BundleFormatError(f"{path} is no regular file", hint="Give the path of a .skerry file.")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", hint="Give the path of a .skerry file."
        ) from error
    with stream:
        yield stream
