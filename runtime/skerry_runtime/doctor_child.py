"""The disposable process of ``skerry-runtime doctor``: imports what may kill the process that imports it.

``doctor_child NAME`` loads an engine and prints one JSON object; an engine that was built for another
processor ends it by SIGILL, which is an answer too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from skerry_contract.errors import SkerryError


def main(words: list[str]) -> int:
    """Look at one engine."""
    # What engines print must not get between the lines of the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answer:
        json.dump(_engine(words[0]), answer)
    return 0


def _engine(name: str) -> Mapping[str, Any]:
    import numpy as np

    from .worker.engines import import_engine

    try:
        engine = import_engine(name)
    except SkerryError as error:
        return {"error": error.message, "hint": error.hint, "numpy": np.__version__}
    return {"version": engine.version, "library": vars(engine).get("library", ""), "numpy": np.__version__}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
