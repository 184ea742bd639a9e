"""First load of a model file: in a disposable child, with limits, without secrets, without network.

Guarantee: whatever the file does (endless loop, 256 GiB of memory, a crash of the engine), the caller gets
the child's plain JSON answer or a `ModelError` within the time limit, and nothing of the child survives.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ModelError, from_code
from skerry_contract.limits import GIB, MIB

from .scratch import scratch

_BOOT: Final = (
    "import json, sys; args = json.loads(sys.stdin.readline()); sys.path[:] = args.pop('sys_path'); "
    "from skerry_packager.quarantine_child import main; main(args)"
)
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""The only environment variables that the child sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineLimits:
    """What the first load may cost at most."""

    wall_seconds: float = 120.0
    cpu_seconds: int = 120
    memory_bytes: int = 3 * GIB
    """Address space of the child, before `memory_per_model_byte` is added."""
    memory_per_model_byte: int = 8
    file_bytes: int = 2 * GIB - 64 * MIB
    """A serialized ONNX graph ends at 2 GiB (protobuf)."""
    answer_bytes: int = 16 * MIB
    nodes: int = 50_000
    initializers: int = 50_000
    depth: int = 8
    """Nesting of If, Loop and Scan."""
    rank: int = 16
    dimension: int = 2**31 - 1


DEFAULT_QUARANTINE: Final = QuarantineLimits()


def run_quarantined(path: Path, limits: QuarantineLimits = DEFAULT_QUARANTINE) -> bytes:
    """Let a child inspect `path`; its answer is the JSON of a `skerry_packager.inspect.ModelInspection`.

    Raises:
        ModelError: the file is refused, or the child exceeded a limit or crashed.
    """
    size = _size_of_regular_file(path)
    if size > limits.file_bytes:
        raise ModelError(
            f"{path.name} has {size} bytes; at most {limits.file_bytes} are accepted",
            hint="Keep large weights in an external data file beside the model.",
        )
    with scratch("quarantine") as folder:
        request = {"sys_path": sys.path, "path": str(path.absolute()), "limits": asdict(limits)}
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ}
            | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            answer, complaint = child.communicate(
                json.dumps(request).encode() + b"\n", timeout=limits.wall_seconds
            )
        except subprocess.TimeoutExpired as error:
            raise _too_slow(path, limits) from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    return _result(path, limits, child.returncode, answer, complaint)


def _size_of_regular_file(path: Path) -> int:
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror or error}", hint="Give the path of an .onnx or .tflite file."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is no regular file", hint="Give the path of an .onnx or .tflite file.")
    return found.st_size


def _result(path: Path, limits: QuarantineLimits, code: int, answer: bytes, complaint: bytes) -> bytes:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _too_slow(path, limits)
    if code < 0:
        raise ModelError(
            f"{path.name} crashed its loader ({signal.Signals(-code).name})",
            hint="The file is damaged or hostile: export it again from the training code.",
        )
    if code != 0 or len(answer) > limits.answer_bytes:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:300]
        if "MemoryError" in last or "bad_alloc" in last:
            raise ModelError(
                f"{path.name} needs more memory to load than the limit of {limits.memory_bytes // MIB} MiB",
                hint="No small machine can run it: look for a huge constant or dimension.",
            )
        raise ModelError(
            f"{path.name} could not be inspected: {last}", hint="Check that the packager is installed."
        )
    message: Any = json.loads(answer)
    if "error" in message:
        error = message["error"]
        raise from_code(str(error["code"]), str(error["message"]), str(error["hint"]))
    return answer


def _too_slow(path: Path, limits: QuarantineLimits) -> ModelError:
    return ModelError(
        f"{path.name} did not load and run once in {limits.wall_seconds:g} s ({limits.cpu_seconds} s of CPU)",
        hint="Look for an endless Loop, or a model far too large for a small machine.",
    )
