"""``skerry matrix``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from skerry_contract.errors import IncompatibleError

from .. import console
from ..results import Progress
from ..scratch import scratch
from .options import EXISTING_FILE, json_option, key_password, password_env_option, public_key_option


@click.command()
@click.argument("bundle", type=EXISTING_FILE)
@public_key_option(required=True)
@click.option(
    "--environment",
    "environments",
    multiple=True,
    metavar="LIBRARY==VERSION[@CORE]",
    help="An engine to try, on this machine or on an emulated Arm core; may be repeated. If not given: the "
    "engines of the bundle's profiles, the versions that are common in the field and, where qemu-user is "
    "installed, emulated cores.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where environments are kept between runs; ~/.cache/skerry/matrix if not given.",
)
@click.option(
    "--sign",
    type=EXISTING_FILE,
    metavar="KEY",
    help="Private key: writes the bundle again with what was found as evidence in it, to --out.",
)
@password_env_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The bundle with the evidence, for --sign."
)
@json_option
def matrix(
    bundle: Path,
    keys: tuple[Path, ...],
    environments: tuple[str, ...],
    cache: Path | None,
    sign: Path | None,
    password_env: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Load every variant on each engine version, and compare its answers.

    Each environment is made once, apart from this installation, and kept. Every variant answers the golden
    samples of the bundle there: identical means bit for bit what was recorded when it was packed. Emulated
    cores run the real Arm packages under qemu-user: right answers, but no speed.

    Exit code 0 means that every variant answered within its tolerance wherever an environment could be made.
    The verdict of a failed environment is shown and never counted as good.

    \b
    Example:
      skerry matrix digits-1.0.0.skerry --key engineer.pub
      skerry matrix digits-1.0.0.skerry --key engineer.pub \\
        --environment onnxruntime==1.23.2 --environment onnxruntime==1.23.2@cortex-a53
      skerry matrix digits-1.0.0.skerry --key engineer.pub --sign engineer.key --out digits-checked.skerry
    """
    from ..build import check_writable
    from ..bundles import unpack
    from ..keys import read_signer, read_verifiers
    from ..matrix import Outcome
    from ..matrix.environments import default_cache, parse_environment
    from ..matrix.evidence import add_evidence
    from ..matrix.run import environments_for, run_matrix
    from ..profiles import load_profile, profile_names

    if (sign is None) != (out is None):
        raise click.UsageError("--sign and --out belong together.")
    signer = None
    if sign is not None and out is not None:
        check_writable(out)
        signer = read_signer(sign, key_password(sign, password_env))
    asked = tuple(parse_environment(text) for text in environments)
    with scratch("matrix") as place:
        folder = place / "bundle"
        manifest = unpack(bundle, folder, read_verifiers(keys)).manifest
        tried = asked or environments_for(manifest, map(load_profile, profile_names()))
        with console.progress(quiet=as_json) as step:
            report: Progress = step
            cells = run_matrix(manifest, folder / "blobs", tried, cache or default_cache(), report)
        if not cells:
            raise IncompatibleError(
                "none of the environments is for an engine of this bundle",
                hint=f"Its engines: {', '.join(sorted({variant.engine for variant in manifest.variants}))}.",
            )
        digest = None if signer is None or out is None else add_evidence(
            manifest, folder / "blobs", cells, signer, out
        )  # fmt: skip
    rows: list[dict[str, Any]] = [
        {
            "variant": cell.variant,
            "engine": cell.environment.library,
            "version": cell.environment.version,
            "cpu": cell.environment.cpu or "this machine",
            "outcome": str(cell.outcome),
            "max_abs_error": cell.max_abs_error,
            "seconds": round(cell.seconds, 2),
            "detail": cell.detail,
        }
        for cell in cells
    ]
    if as_json:
        console.print_json({"cells": rows, "bundle": None if out is None else str(out), "digest": digest})
    else:
        _show(rows)
        if digest is not None:
            console.facts([("bundle", out), ("digest", digest)])
    unavailable = [cell for cell in cells if cell.outcome is Outcome.UNAVAILABLE]
    if unavailable:
        console.warn(f"{len(unavailable)} of {len(cells)} cells could not be tried: nothing is known of them")
    tried_cells = [cell for cell in cells if cell not in unavailable]
    if not tried_cells or not all(cell.outcome.good for cell in tried_cells):
        click.get_current_context().exit(1)


def _show(rows: list[dict[str, Any]]) -> None:
    console.table(
        ["variant", "engine", "version", "processor", "outcome", "max error", "seconds", "detail"],
        [
            [
                row["variant"],
                row["engine"],
                row["version"],
                row["cpu"],
                row["outcome"],
                "" if row["max_abs_error"] is None else f"{row['max_abs_error']:.2g}",
                f"{row['seconds']:.1f}",
                row["detail"],
            ]
            for row in rows
        ],
        right=("max error", "seconds"),
        whole=("variant", "engine", "processor", "outcome"),
    )
