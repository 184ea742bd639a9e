"""The long steps of an install: download, verification, staging. They block, in the background thread."""

from __future__ import annotations

import threading
from typing import Final

from skerry_contract.digests import Digest
from skerry_contract.errors import BundleFormatError, SlotError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.manifest import BlobRef, Manifest, parse_manifest

from ..config import BudgetsConfig
from . import trust, trust_process
from .context import Context
from .fetch import Progress
from .record import Record
from .slots import Generation, GenerationInfo, ModelSlots, effective_budgets

_LONGEST_REASON: Final = 2000
"""Characters; a bundle may have many variants, and each is named with what it lacks."""


class Installer:
    """The steps for one model; a `Record` says which bundle. Errors are those of the parts it uses."""

    def __init__(self, name: str, slots: ModelSlots, context: Context) -> None:
        self._name = name
        self._slots = slots
        self._c = context

    def describe(self, record: Record, wait_s: float, cancelled: threading.Event) -> None:
        """Bring manifest and signature into the store, after a wait that spreads a fleet's downloads."""
        cancelled.wait(wait_s)
        refs = [
            _small(record.target, record.manifest_size, DEFAULT_LIMITS.manifest_bytes),
            _small(record.signature, record.signature_size, DEFAULT_LIMITS.signature_bytes),
        ]
        self._c.fetcher.fetch(refs, cancelled=cancelled)

    def verify(self, record: Record, floor: int, device: trust.Device) -> trust.BundleAnswer:
        """Ask the trust process; ``device`` has the memory that is left for this model."""
        request = trust.CheckBundle(
            store=str(self._c.store.folder),
            manifest=_known(record.target),
            signature=_known(record.signature),
            engineers=self._c.config.trust.engineers,
            name=self._name,
            version=record.version,
            release=record.release,
            floor=floor,
            device=device,
        )
        return trust_process.verify_bundle(request)

    def fetch(self, record: Record, cancelled: threading.Event, progress: Progress) -> Generation:
        """Bring the chosen variant's blobs into the store, then stage. Only after `verify`."""
        manifest = self._manifest(record)
        refs = manifest.blobs_for(manifest.variant(record.variant))
        self._c.fetcher.fetch(refs, cancelled=cancelled, progress=progress)
        return self.stage(record)

    def stage(self, record: Record) -> Generation:
        """Hash everything again and build the generation. Only of a bundle that was verified."""
        manifest, bundle = self._manifest(record), _known(record.target)
        return stage(
            self._slots, manifest, bundle, _known(record.signature), (record.variant, record.reason),
            self._c.config.budgets,
        )  # fmt: skip

    def _manifest(self, record: Record) -> Manifest:
        return parse_manifest(self._c.store.read(_known(record.target), DEFAULT_LIMITS.manifest_bytes))


def stage(
    slots: ModelSlots,
    manifest: Manifest,
    bundle: Digest,
    signature: Digest,
    choice: tuple[str, str],
    budgets: BudgetsConfig,
) -> Generation:
    """Build the next generation of a verified bundle whose blobs are in the store.

    Args:
        choice: the variant, and why it was chosen.

    Raises:
        SlotError: a blob is missing or damaged.
        StorageError: the disk fails.
    """
    info = GenerationInfo(
        variant=choice[0],
        bundle=bundle,
        budgets=effective_budgets(manifest, budgets.ram_bytes, budgets.latency_p95_us),
        reason=choice[1][:_LONGEST_REASON],
    )
    return slots.stage(manifest, signature, info)


def _known(digest: Digest | None) -> Digest:
    if digest is None:
        raise SlotError("the update names no bundle", hint="Order or install it again.")
    return digest


def _small(digest: Digest | None, size: int, most: int) -> BlobRef:
    """A manifest or a signature, which is small by contract."""
    if not 0 < size <= most:
        raise BundleFormatError(
            f"the fleet announced a description of {size} bytes; at most {most} are accepted"
        )
    return BlobRef(digest=_known(digest), size=size)
