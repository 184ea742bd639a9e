"""The disposable process of ``skerry-runtime doctor``: imports what may kill the process that imports it.

``doctor_child engine NAME`` loads an engine; ``doctor_child keys`` reads public keys (a JSON list of PEM
texts on stdin). It prints one JSON object; an engine that was built for another processor ends it by SIGILL,
which is an answer too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from skerry_contract.errors import SkerryError


def main(words: list[str]) -> int:
    """Do one job."""
    # What engines print must not get between the lines of the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job: Callable[[], Mapping[str, Any]] = _keys if words[0] == "keys" else lambda: _engine(words[1])
    with answer:
        json.dump(job(), answer)
    return 0


def _engine(name: str) -> Mapping[str, Any]:
    import numpy as np

    from .worker.engines import import_engine

    try:
        engine = import_engine(name)
    except SkerryError as error:
        return {"error": error.message, "hint": error.hint, "numpy": np.__version__}
    return {"version": engine.version, "library": vars(engine).get("library", ""), "numpy": np.__version__}


def _keys() -> Mapping[str, Any]:
    from skerry_contract.signing import load_verifier

    errors = []
    for pem in json.load(sys.stdin):
        try:
            load_verifier(pem.encode())
        except SkerryError as error:
            errors.append(error.message)
        else:
            errors.append("")
    return {"errors": errors}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
