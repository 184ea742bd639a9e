"""Makes the environments of the matrix: packages in folders of their own, and emulated Arm cores for them.

Nothing is installed into this machine. A library goes by ``pip install --target`` into a folder of the cache,
for Arm from the real aarch64 wheels; the Arm system is Debian's own packages, fetched by apt with a private
configuration (its signatures are checked) and unpacked. qemu-user runs its Python; no root is needed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skerry_contract.errors import InputError, UnavailableError

from ..scratch import scratch
from . import Environment

CPUS: Final = ("cortex-a53", "cortex-a72", "cortex-a76")
"""Arm cores that qemu-user models: those of the Raspberry Pi Zero 2 W (and 3), 4 and 5."""


@dataclass(frozen=True, slots=True)
class _Library:
    engine: str
    """Name in the manifest."""
    needs: tuple[str, ...]
    """Requirements beside the library itself."""


LIBRARIES: Final[Mapping[str, _Library]] = {
    "onnxruntime": _Library("onnx", ("numpy",)),
    "ai-edge-litert": _Library("tflite", ("numpy",)),
    # With numpy 2 it imports, and its interpreter fails.
    "tflite-runtime": _Library("tflite", ("numpy<2",)),
}
_QEMU: Final = ("qemu-aarch64-static", "qemu-aarch64")
_ARM_PACKAGES: Final = ("python3", "libstdc++6")
_ARM_PLATFORMS: Final = (
    *(f"manylinux_2_{minor}_aarch64" for minor in (36, 35, 34, 31, 28, 27, 26, 24, 17)),
    "manylinux2014_aarch64",
)
"""What a Debian 12 system accepts, newest first."""
_SECONDS: Final = 900


@dataclass(frozen=True, slots=True)
class Interpreter:
    """How to start the Python of an environment; append its arguments."""

    command: tuple[str, ...]
    site: Path
    """Folder with the library and what it needs."""


def default_cache() -> Path:
    """Where environments are kept: ``$XDG_CACHE_HOME/skerry/matrix``, or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "skerry" / "matrix"


def parse_environment(text: str) -> Environment:
    """``onnxruntime==1.23.2``, or ``onnxruntime==1.23.2@cortex-a53``.

    Raises:
        InputError: another form, or a library or core that is not known.
    """
    library, equal, rest = text.partition("==")
    version, at, cpu = rest.partition("@")
    if not equal or not version or library not in LIBRARIES or (at and cpu not in CPUS):
        raise InputError(
            f"{text[:80]!r} names no environment",
            hint=f"Write LIBRARY==VERSION or LIBRARY==VERSION@CORE; libraries: {', '.join(LIBRARIES)}; "
            f"cores: {', '.join(CPUS)}.",
        )
    return Environment(library, version, cpu)


def find_qemu() -> str:
    """Path of qemu-user for 64-bit Arm; empty if it is not installed."""
    return next((found for name in _QEMU if (found := shutil.which(name))), "")


def make(environment: Environment, cache: Path) -> Interpreter:
    """Make an environment, or take it from the cache.

    Raises:
        UnavailableError: qemu or apt is missing, or the packages cannot be had.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if environment.cpu:
            return _emulated(environment, cache)
        tags = f"py{sys.version_info[0]}.{sys.version_info[1]}-{platform.machine()}"
        return Interpreter((sys.executable, "-I", "-S"), _site(environment, cache, tags, ()))
    except OSError as error:
        raise UnavailableError(
            f"{environment} cannot be set up in {cache}: {error.strerror or error}",
            hint="Name another folder by --cache.",
        ) from error


def _emulated(environment: Environment, cache: Path) -> Interpreter:
    qemu = find_qemu()
    if not qemu:
        raise UnavailableError(
            "qemu-user is not installed: no Arm core can be emulated",
            hint="On Debian: apt-get install qemu-user-static",
        )
    root = _arm_system(cache)
    python = max((root / "usr/bin").glob("python3.*[0-9]"))
    version = python.name.removeprefix("python")
    options = [f"--platform={name}" for name in _ARM_PLATFORMS]
    options += ["--only-binary=:all:", f"--python-version={version}", "--implementation=cp"]
    site = _site(environment, cache, f"py{version}-aarch64", options)
    return Interpreter((qemu, "-cpu", environment.cpu, "-L", str(root), str(python), "-I", "-S"), site)


def _site(environment: Environment, cache: Path, tags: str, options: Sequence[str]) -> Path:
    """The folder of a library's packages, made whole or not at all."""
    folder = cache / f"{environment.library}-{environment.version}-{tags}"
    if folder.is_dir():
        return folder
    wanted = (f"{environment.library}=={environment.version}", *LIBRARIES[environment.library].needs)
    with scratch("making", cache) as work:
        draft = work / "site"
        _run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install",
             "--target", str(draft), *options, *wanted],
            f"{environment} cannot be installed",
            "Check the version, and that this machine reaches a package index.",
        )  # fmt: skip
        _place(draft, folder)
    return folder


def _arm_system(cache: Path) -> Path:
    """Root of a Debian arm64 system that holds Python and what it needs."""
    root = cache / "debian-arm64"
    if root.is_dir():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(
                f"{tool} is missing: the Arm system is made of Debian's packages",
                hint="Run the matrix on Debian or a system made from it.",
            )
    with scratch("making", cache) as work:
        for folder in ("state/lists/partial", "cache/archives/partial", "debs", "root"):
            (work / folder).mkdir(parents=True)
        config = work / "apt.conf"
        config.write_text(
            'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\n'
            f'Dir::State "{work}/state";\nDir::State::status "/dev/null";\nDir::Cache "{work}/cache";\n'
            'APT::Sandbox::User "";\n'
        )
        what, hint = "Debian's arm64 packages cannot be fetched", "Check that apt-get update works here."
        apt = ["apt-get", "--quiet=2", "-c", str(config)]
        # Other sources of this machine may have nothing for Arm: what counts is that the packages are found.
        _run([*apt, "update"], what, hint, must_work=False)
        wanted = _run(
            [*apt, "--print-uris", "--yes", "--no-install-recommends", "install", *_ARM_PACKAGES], what, hint
        )
        names = [line.split()[1].partition("_")[0] for line in wanted.splitlines() if line.startswith("'")]
        _run([*apt, "download", *names], what, hint, cwd=work / "debs")
        for package in sorted((work / "debs").glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(package), str(work / "root")], what, hint)
        _place(work / "root", root)
    return root


def _place(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        # Another process was faster, and its folder is as good.
        if not folder.is_dir():
            raise


def _run(
    command: Sequence[str], what: str, hint: str, cwd: Path | None = None, must_work: bool = True
) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{what}: {command[0]} did not end in {_SECONDS} s", hint=hint) from error
    if must_work and done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "e:"))]
        last = (complaints or done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise UnavailableError(f"{what}: {last[:300]}", hint=hint)
    return done.stdout
