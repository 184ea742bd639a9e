"""``skerry verify``, ``skerry unpack``, ``skerry publish``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import console
from .options import EXISTING_FILE, json_option, public_key_option, with_client

if TYPE_CHECKING:
    from ..fleet_client import FleetClient


@click.command()
@click.argument("bundle", type=EXISTING_FILE)
@public_key_option(required=True)
@json_option
def verify(bundle: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Check the signature and every byte of a bundle.

    The same check as on a device: the signature by one of the keys, the manifest's schema, the framing of
    the file, the digest of every blob. Exit code 0 means that all of it holds.

    The signature follows the OpenSSF model-signing format, so its tool can verify an unpacked bundle too.

    \b
    Example:
      skerry verify digits-1.0.0.skerry --key engineer.pub
      skerry unpack digits-1.0.0.skerry digits/ --key engineer.pub
      model_signing verify key digits/ --signature digits/manifest.sig --public_key engineer.pub
    """
    from ..bundles import verify as verify_file
    from ..keys import read_verifiers
    from .inspect import bundle_as_json, show_bundle

    verified = verify_file(bundle, read_verifiers(keys))
    if as_json:
        console.print_json(bundle_as_json(verified))
        return
    show_bundle(verified)
    console.say("verified: the signature and every blob", style="green")


@click.command()
@click.argument("bundle", type=EXISTING_FILE)
@click.argument("folder", type=click.Path(path_type=Path))
@public_key_option(required=False)
@click.option(
    "--no-verify",
    is_flag=True,
    help="Unpack without looking at the signature; digests are checked all the same.",
)
@json_option
def unpack(bundle: Path, folder: Path, keys: tuple[Path, ...], no_verify: bool, as_json: bool) -> None:
    """Write the members of a bundle into a folder.

    FOLDER must be new or empty. It gets manifest.json, manifest.sig and blobs/, each blob named by its
    digest. Nothing is written unless the bundle verifies.

    \b
    Example:
      skerry unpack digits-1.0.0.skerry digits/ --key engineer.pub
    """
    from ..bundles import unpack as unpack_file
    from ..keys import read_verifiers

    if bool(keys) == no_verify:
        raise click.UsageError("Give --key to verify the bundle, or --no-verify to do without.")
    unpacked = unpack_file(bundle, folder, None if no_verify else read_verifiers(keys))
    if no_verify:
        console.warn("the signature was not checked: do not run what is in this folder")
    if as_json:
        console.print_json(
            {
                "folder": str(folder),
                "digest": unpacked.digest,
                "verified": not no_verify,
                "blobs": [ref.digest for ref in unpacked.manifest.blobs()],
            }
        )
        return
    console.facts(
        [("folder", folder), ("digest", unpacked.digest), ("blobs", len(unpacked.manifest.blobs()))]
    )


@click.command()
@click.argument("bundle", type=EXISTING_FILE)
@with_client
@json_option
def publish(bundle: Path, client: FleetClient, as_json: bool) -> None:
    """Upload a bundle to the fleet server.

    The server verifies it with the keys that it trusts and keeps it. Nothing happens on any device before a
    rollout. To publish the same file again changes nothing; another file of the same version is refused.

    \b
    Example:
      skerry publish digits-1.0.0.skerry
    """
    from ..bundles import describe

    described = describe(bundle)
    with console.bytes_progress(bundle.name, quiet=as_json) as sent:
        is_new, answer = client.publish(bundle, sent)
    if as_json:
        console.print_json({"new": is_new, **answer})
        return
    manifest = described.manifest
    console.facts(
        [
            (
                "published" if is_new else "unchanged",
                f"{manifest.name} {manifest.version}, release {manifest.release}",
            ),
            ("digest", answer.get("digest", described.digest)),
            ("server", client.address),
        ]
    )
    console.say(f"next: skerry rollout start {manifest.name} {manifest.version} --watch")
