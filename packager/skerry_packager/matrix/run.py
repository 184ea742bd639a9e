"""Runs the matrix: every variant of a bundle in every environment that is for its engine."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np

import skerry_contract
import skerry_runtime
from skerry_contract.digests import Digest, hex_of
from skerry_contract.errors import SelfTestError, UnavailableError
from skerry_contract.manifest import Manifest, Variant
from skerry_runtime.worker.golden import Golden, read_golden

from ..profiles import DeviceProfile
from ..results import Progress, no_progress
from ..scratch import scratch
from . import Cell, Environment, Outcome
from .environments import LIBRARIES, Interpreter, find_qemu, make

PINNED: Final = (
    Environment("onnxruntime", "1.23.2"),
    Environment("onnxruntime", "1.28.0"),
    Environment("tflite-runtime", "2.14.0"),
    Environment("ai-edge-litert", "2.3.0"),
)
"""Versions that devices in the field have."""
EMULATED: Final = (Environment("onnxruntime", "1.23.2"), Environment("tflite-runtime", "2.14.0"))
"""The newest that run under qemu-user 7.2."""
_EMULATED_CPUS: Final = ("cortex-a53", "cortex-a76")
_BOOT: Final = (
    "import json, sys; request = json.loads(sys.stdin.readline()); sys.path[:0] = request['path']; "
    "import runpy; runpy.run_path(request['child'])['main'](request)"
)
_NATIVE_SECONDS: Final = 300
_EMULATED_SECONDS: Final = 1800
_SIGNALS_END: Final = 128
_PACKAGES: Final = (skerry_contract, skerry_runtime)


def environments_for(manifest: Manifest, profiles: Iterable[DeviceProfile]) -> tuple[Environment, ...]:
    """What a bundle meets: the engines of the profiles that it was packed for, the versions that are pinned
    here, those installed beside Skerry and, where qemu-user is installed, emulated Arm cores."""
    engines = {variant.engine for variant in manifest.variants}
    wanted = {variant_profile for variant in manifest.variants for variant_profile in variant.profiles}
    found = set(PINNED)
    for profile in profiles:
        if profile.name in wanted:
            found |= {Environment(engine.name, engine.version) for engine in profile.engines}
    for library in LIBRARIES:
        try:
            found.add(Environment(library, version(library)))
        except PackageNotFoundError:
            continue
    if find_qemu() and platform.machine() != "aarch64":
        found |= {Environment(one.library, one.version, cpu) for one in EMULATED for cpu in _EMULATED_CPUS}
    mine = [one for one in found if LIBRARIES[one.library].engine in engines]
    return tuple(sorted(mine, key=lambda one: (one.cpu, one.library, _numbers(one.version))))


def run_matrix(
    manifest: Manifest,
    blobs: Path,
    environments: Sequence[Environment],
    cache: Path,
    progress: Progress = no_progress,
) -> tuple[Cell, ...]:
    """One cell for each variant and environment of the same engine.

    Args:
        blobs: folder with the bundle's verified blobs, each named by the hexadecimal digits of its digest.

    Raises:
        ManifestError, SelfTestError: the golden samples cannot be read.
    """
    cells: list[Cell] = []
    pairs = [
        (environment, variant)
        for environment in environments
        for variant in manifest.variants
        if LIBRARIES[environment.library].engine == variant.engine
    ]
    made: dict[Environment, Interpreter | UnavailableError] = {}
    with scratch("matrix") as folder:
        code = _copy_code(folder)
        for number, (environment, variant) in enumerate(pairs):
            progress(f"{variant.id} in {environment}", number, len(pairs))
            if environment not in made:
                try:
                    made[environment] = make(environment, cache)
                except UnavailableError as error:
                    made[environment] = error
            interpreter = made[environment]
            if isinstance(interpreter, UnavailableError):
                cells.append(_cell(variant, environment, Outcome.UNAVAILABLE, interpreter.message))
            else:
                cells.append(_try(manifest, variant, blobs, environment, interpreter, code))
    progress("done", len(pairs), len(pairs))
    return tuple(cells)


def _try(
    manifest: Manifest,
    variant: Variant,
    blobs: Path,
    environment: Environment,
    interpreter: Interpreter,
    code: Path,
) -> Cell:
    def blob(digest: Digest) -> bytes:
        return (blobs / hex_of(digest)).read_bytes()

    golden = read_golden(
        manifest, variant, blob(manifest.golden_inputs.digest), blob(variant.golden_outputs.digest)
    )
    inputs = [spec.name for spec in manifest.inputs]
    outputs = [spec.name for spec in manifest.outputs]
    started = time.monotonic()
    with scratch("matrix") as folder:
        (folder / "model").write_bytes(blob(variant.model.digest))
        stacked = {
            f"input{number}": np.stack([sample.inputs[name] for sample in golden.samples])
            for number, name in enumerate(inputs)
        }
        np.savez(folder / "inputs.npz", **stacked)  # type: ignore[arg-type] # the stub mistakes them for allow_pickle
        request = {
            "path": [str(interpreter.site), str(code)],
            "child": str(code / "child.py"),
            "folder": str(folder),
            "engine": variant.engine,
            "inputs": inputs,
            "outputs": outputs,
            "samples": len(golden.samples),
        }
        limit = _EMULATED_SECONDS if environment.cpu else _NATIVE_SECONDS
        try:
            done = subprocess.run(
                [*interpreter.command, "-c", _BOOT],
                input=json.dumps(request).encode() + b"\n",
                capture_output=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _cell(variant, environment, Outcome.CRASHES, f"no answer within {limit} s", started)
        if done.returncode:
            return _cell(variant, environment, Outcome.CRASHES, _last_words(done), started)
        answer = json.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            return _cell(variant, environment, Outcome.FAILS, answer["error"], started)
        with np.load(folder / "outputs.npz", allow_pickle=False) as arrays:
            got = [
                {name: arrays[f"output{number}_{sample}"] for number, name in enumerate(outputs)}
                for sample in range(len(golden.samples))
            ]
    return _compared(variant, environment, golden, got, started)


def _compared(
    variant: Variant,
    environment: Environment,
    golden: Golden,
    got: Sequence[dict[str, np.ndarray]],
    started: float,
) -> Cell:
    identical, worst = True, 0.0
    for sample, answers in zip(golden.samples, got, strict=True):
        for name, wanted in sample.outputs.items():
            same = answers[name].shape == wanted.shape and answers[name].dtype == wanted.dtype
            identical = identical and same and answers[name].tobytes() == wanted.tobytes()
            if same and wanted.size:
                difference = np.abs(answers[name].astype(np.float64) - wanted.astype(np.float64))
                worst = max(worst, float(difference.max()))
    try:
        for index, answers in enumerate(got):
            golden.check(index, answers)
    except SelfTestError as error:
        return _cell(variant, environment, Outcome.DIFFERS, error.message, started, worst)
    outcome = Outcome.IDENTICAL if identical else Outcome.WITHIN
    return _cell(variant, environment, outcome, "", started, worst)


def _cell(
    variant: Variant,
    environment: Environment,
    outcome: Outcome,
    detail: str = "",
    started: float | None = None,
    worst: float | None = None,
) -> Cell:
    return Cell(
        variant=variant.id,
        environment=environment,
        outcome=outcome,
        detail=detail,
        max_abs_error=worst,
        seconds=0.0 if started is None else time.monotonic() - started,
    )


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    signalled = -done.returncode if done.returncode < 0 else done.returncode - _SIGNALS_END
    how = f"ended by signal {signalled}" if signalled > 0 else f"ended with {done.returncode}"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"the process {how}" + (f": {lines[-1][:300]}" if lines else "")


def _copy_code(folder: Path) -> Path:
    """The device's own code alone: what else is installed here must not be seen by other versions."""
    code = folder / "code"
    for package in _PACKAGES:
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, code / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("child.py"), code / "child.py")
    return code


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
