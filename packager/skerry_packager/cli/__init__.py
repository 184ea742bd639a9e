"""The ``skerry`` command.

`main` is what the installed script calls. It only needs the standard library to say which extra is missing.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; ends the process with the exit codes of ``skerry --help``."""
    try:
        from .app import skerry
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print(
            "error: the skerry command needs packages that are not installed (click)\n"
            "→ pip install 'skerry[packager]'; in a clone of the repository: pip install '.[packager]'; "
            "a device needs only skerry-runtime.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    skerry(prog_name="skerry")
