"""Runs in an environment of the matrix: loads one variant and answers the golden samples.

Only the standard library, numpy and the device's own engine code are there. The request is JSON on standard
input; outputs go to a file, what happened to standard output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    """Answer the samples in ``request["folder"]`` with ``request["engine"]``."""
    import numpy as np

    from skerry_contract.errors import SkerryError
    from skerry_runtime.worker.engines import import_engine
    from skerry_runtime.worker.engines.model_file import ModelFile

    folder = Path(request["folder"])
    answer: dict[str, Any]
    try:
        engine = import_engine(request["engine"])
        answer = {"version": engine.version}
        session = engine.load(ModelFile(os.open(folder / "model", os.O_RDONLY | os.O_CLOEXEC)))
        outputs: dict[str, Any] = {}
        with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
            inputs = {name: arrays[f"input{number}"] for number, name in enumerate(request["inputs"])}
        for sample in range(request["samples"]):
            session.reset()
            results = session.run({name: array[sample] for name, array in inputs.items()})
            for number, name in enumerate(request["outputs"]):
                outputs[f"output{number}_{sample}"] = results[name]
        np.savez(folder / "outputs.npz", **outputs)
    except SkerryError as error:
        answer = {"error": error.message}
    except KeyError as error:
        answer = {"error": f"the engine gives no output {error}"}
    json.dump(answer, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()
