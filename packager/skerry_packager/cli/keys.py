"""``skerry keys``."""

from __future__ import annotations

from pathlib import Path

import click

from .. import console
from .options import json_option


@click.group()
def keys() -> None:
    """Make the keys that sign bundles.

    \b
    Example:
      skerry keys init --name engineer
    """


@keys.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder; the current one if not given.",
)
@click.option("--name", default="skerry", show_default=True, help="The files are NAME.key and NAME.pub.")
@click.option(
    "--password-env",
    metavar="VAR",
    help="Encrypt the private key with the password in this environment variable.",
)
@click.option("--no-password", is_flag=True, help="Leave the private key unencrypted, without the warning.")
@json_option
def init(out: Path, name: str, password_env: str | None, no_password: bool, as_json: bool) -> None:
    """Make a pair of EC P-256 keys: NAME.key signs bundles, NAME.pub goes to whoever verifies them.

    A file that exists is never overwritten. The private key is readable by you alone; give it a password
    wherever it is kept for longer.

    \b
    Example:
      skerry keys init --name engineer
      KEY_PASSWORD=… skerry keys init --out ~/.skerry --name release --password-env KEY_PASSWORD
    """
    from ..keys import init_keys, password_from

    if password_env and no_password:
        raise click.UsageError("--password-env and --no-password exclude each other.")
    pair = init_keys(out, name, password_from(password_env) if password_env else None)
    if not pair.encrypted and not no_password:
        console.warn(
            f"{pair.private_path} is not encrypted: whoever reads it can sign. --password-env encrypts a key."
        )
    if as_json:
        console.print_json(
            {
                "private_key": str(pair.private_path),
                "public_key": str(pair.public_path),
                "key_id": pair.key_id,
                "encrypted": pair.encrypted,
            }
        )
        return
    console.facts(
        [
            ("private key", f"{pair.private_path}  (keep it secret)"),
            ("public key", pair.public_path),
            ("key id", pair.key_id),
        ]
    )
