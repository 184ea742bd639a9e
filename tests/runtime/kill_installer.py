"""One install on the slots, single-threaded, for `test_slots`: run in a process that is killed somewhere.

``python kill_installer.py DATA BUNDLES VERSION``: take the bundle's blobs into the store, build the
generation, set it pending, confirm it, collect. No cryptography, no engine: this is about the disk alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from skerry_contract.bundle import BundleReader
from skerry_contract.manifest import bundle_digest, parse_manifest
from skerry_runtime.agent.slots import EffectiveBudgets, GenerationInfo, ModelSlots
from skerry_runtime.agent.store import Store


def install(data: Path, bundle: Path) -> None:
    """The order of the agent, from recovery to collection."""
    store = Store(data / "store")
    slots = ModelSlots(data / "models" / "digits", store)
    slots.recover()
    with bundle.open("rb") as stream:
        reader = BundleReader(stream)
        manifest = parse_manifest(reader.manifest_bytes)
        for ref, pieces in reader.blobs(manifest):
            store.drop(ref.digest)
            with store.part(ref.digest).open("wb") as part:
                part.writelines(pieces)
            store.adopt(ref.digest)
        store.add(reader.manifest_bytes)
        signature = store.add(reader.signature)
    info = GenerationInfo(
        variant=manifest.variants[0].id,
        bundle=bundle_digest(reader.manifest_bytes),
        budgets=EffectiveBudgets(),
    )
    generation = slots.stage(manifest, signature, info)
    slots.set_pending(generation)
    slots.take_try()
    slots.confirm(generation)
    slots.collect()
    store.collect(())


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.argv[2]))
