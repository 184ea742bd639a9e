"""What ``skerry-runtime doctor`` looks at on this machine: each check says how it is and what to do.

Works while the daemon runs and when it does not, and changes nothing but for one probe file in the data
folder that is removed at once. Here are the service and its files; the machine is in `doctor_machine`,
sockets and the broker in `doctor_network`; `skerry_runtime.doctor_child` looks at engines and keys.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import SkerryError
from skerry_contract.limits import MIB

from ..config import DeviceConfig
from .files import remove_durably, write_durably
from .store import RESERVE_BYTES

UNIT: Final = "skerry-runtime.service"
_FEW_INODES: Final = 1000
_MANY_RESTARTS: Final = 5
_COMMAND_SECONDS: Final = 10.0
AS_WHOM: Final = "Run doctor as the daemon's user, or as root."


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found."""

    check: str
    level: Level
    text: str
    hint: str = ""
    """What to do; empty if there is nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """Who is looked at."""

    config: DeviceConfig
    config_path: Path
    status: Mapping[str, Any] | None
    """Of the daemon, if it answers."""
    now_ms: int
    root: Path = Path("/")
    """Where ``proc``, ``sys``, ``dev`` and ``run`` are."""


Check = Callable[[Patient], Iterator[Finding]]


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, hint: str = "") -> Finding:
    return Finding(check, Level.WARN, text, hint)


def fail(check: str, text: str, hint: str) -> Finding:
    return Finding(check, Level.FAIL, text, hint)


def examine(checks: Sequence[Check], patient: Patient) -> Iterator[Finding]:
    """Every finding in order; what cannot be looked at is a warning, not an end."""
    for check in checks:
        try:
            yield from check(patient)
        except OSError as error:
            name = check.__name__.strip("_").replace("_", " ")
            yield warn(name, f"cannot be looked at: {said(error)}", AS_WHOM)


def said(error: OSError) -> str:
    """An error of the system without its number."""
    text = error.strerror or str(error) or "no answer"
    return f"{error.filename}: {text}" if error.filename else text


# --- the daemon ---------------------------------------------------------------------------------------


def daemon(patient: Patient) -> Iterator[Finding]:
    status = patient.status
    if status is None:
        yield _no_answer(patient)
        return
    yield ok("daemon", f"process {status['pid']}, version {status['version']}")
    for name, model in status["models"].items():
        error = model["error"]
        if not model["active"]:
            said = f": {error['message']}" if error else ""
            hint = (error and error["hint"]) or "Install a bundle, or roll one out."
            yield fail("models", f"nothing answers for {name}{said}", hint)
        elif model["trouble"]:
            trouble = model["trouble"]
            text = f"the process of {name} is being replaced: {trouble['message']}"
            yield fail("models", text, trouble["hint"] or "See skerry-runtime logs.")
        elif error:
            text = f"{name} {model['target_version']} is {model['state']}: {error['message']}"
            yield warn("models", text, error["hint"])
        else:
            yield ok("models", f"{name} {model['active']['version']} answers")
    if status["outbox"]["error"]:
        yield fail(
            "outbox", status["outbox"]["error"], "Serving goes on. Repair the disk, see the check disk."
        )
    if status.get("service", {}).get("withheld"):
        missing = ", ".join(status["service"]["missing"])
        yield warn("watchdog", f"waits for {missing}", "See skerry-runtime logs; systemd restarts it soon.")


def _no_answer(patient: Patient) -> Finding:
    data = patient.config.data_dir
    holder = lock_holder(patient.root, data / "lock")
    if holder:
        text = f"process {holder} holds {data} and does not answer"
        return fail("daemon", text, f"See its log; then end it (kill {holder}), or give this one a data_dir.")
    start = f"skerry-runtime run --config {patient.config_path}"
    if _has_systemd(patient):
        start = f"systemctl start {UNIT.removesuffix('.service')}"
    return warn("daemon", "none answers", f"Start it: {start}")


def lock_holder(root: Path, lock: Path) -> int:
    """The process that holds the data folder's lock, by ``/proc/locks``; 0 if none does. Takes no lock."""
    try:
        found = lock.stat()
        lines = (root / "proc/locks").read_text().splitlines()
    except OSError:
        return 0
    device = found.st_dev
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{found.st_ino}"
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == place and words[4].isdecimal():
            return int(words[4])
    return 0


def _has_systemd(patient: Patient) -> bool:
    return (patient.root / "run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def unit(patient: Patient) -> Iterator[Finding]:
    if not _has_systemd(patient):
        yield ok("unit", "systemd does not run here")
        return
    wanted = "LoadState,ActiveState,UnitFileState,NRestarts,Result"
    done = output(["systemctl", "show", UNIT, f"--property={wanted}"])
    state = dict(line.split("=", 1) for line in done.splitlines() if "=" in line)
    active = state.get("ActiveState", "unknown")
    if state.get("LoadState") != "loaded":
        yield warn("unit", f"{UNIT} is not installed", "See devices/install.sh.")
    elif active == "failed":
        yield fail("unit", f"{UNIT} failed: {state.get('Result')}", f"journalctl -u {UNIT} -n 50")
    elif active not in ("active", "activating", "reloading"):
        yield warn("unit", f"{UNIT} is {active}", f"systemctl enable --now {UNIT}")
    elif int(state.get("NRestarts") or 0) >= _MANY_RESTARTS:
        yield warn("unit", f"{UNIT} was restarted {state['NRestarts']} times", f"journalctl -u {UNIT} -n 200")
    elif state.get("UnitFileState") not in ("enabled", "static"):
        yield warn("unit", f"{UNIT} does not start at boot", f"systemctl enable {UNIT}")
    else:
        yield ok("unit", f"{UNIT} is {active}")


# --- files --------------------------------------------------------------------------------------------


def configuration(patient: Patient) -> Iterator[Finding]:
    path, config = patient.config_path, patient.config
    mode = path.stat().st_mode
    if mode & 0o022:
        yield fail("configuration", f"others may write {path}", f"chmod 640 {path}")
    elif (config.fleet or config.serve.token) and mode & 0o004:
        yield warn("configuration", f"everybody may read the secrets in {path}", f"chmod 640 {path}")
    else:
        yield ok("configuration", f"{path} is valid")
    if config.fleet and config.fleet.tls_ca and not os.access(config.fleet.tls_ca, os.R_OK):
        yield fail(
            "configuration", f"fleet.tls_ca {config.fleet.tls_ca} cannot be read", "Check its path and mode."
        )


def permissions(patient: Patient) -> Iterator[Finding]:
    data = patient.config.data_dir
    if not data.is_dir():
        yield warn("permissions", f"{data} is not there yet", "The daemon makes it at its first start.")
        return
    owner = data.stat()
    if owner.st_mode & 0o077:
        yield warn("permissions", f"others may look into {data}", f"chmod 700 {data}")
    foreign = [path for path in _own_files(data) if path.lstat().st_uid != owner.st_uid]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        yield fail(
            "permissions",
            f"{foreign[0]}{more} do not belong to the owner of {data}"
            if more
            else f"{foreign[0]} does not belong to the owner of {data}",
            f"A command was run as another user: chown -R --reference={data} {data}",
        )
    elif os.geteuid() not in (0, owner.st_uid):
        yield warn("permissions", f"{data} belongs to another user", AS_WHOM)
    elif not owner.st_mode & 0o077:
        yield ok("permissions", f"{data} is the owner's alone")


def disk(patient: Patient) -> Iterator[Finding]:
    data = _existing(patient.config.data_dir)
    system = os.statvfs(data)
    free = system.f_bavail * system.f_frsize
    if system.f_flag & os.ST_RDONLY:
        yield fail(
            "disk", f"the file system of {data} is read-only", "See dmesg, check the disk, remount it."
        )
        return
    wanted = RESERVE_BYTES + patient.config.buffer_bytes
    if free < RESERVE_BYTES:
        yield fail("disk", f"{free / MIB:.0f} MiB are free; no install is possible", "Free some space.")
    elif free < wanted:
        text = f"{free / MIB:.0f} MiB are free; reserve and telemetry may want {wanted / MIB:.0f}"
        yield warn("disk", text, "Free some space, or lower telemetry.buffer_mb.")
    else:
        yield ok("disk", f"{free / MIB:.0f} MiB are free")
    if system.f_files > 0 and system.f_favail < _FEW_INODES:
        yield fail("disk", f"{system.f_favail} inodes are free", "Remove small files on that file system.")
    if not patient.config.data_dir.is_dir():
        return
    if os.geteuid() not in (0, patient.config.data_dir.stat().st_uid):
        yield warn("disk", "only the daemon's user can try whether files can be written", AS_WHOM)
    else:
        probe = patient.config.data_dir / f"doctor-{os.getpid()}"
        try:
            write_durably(probe, b"doctor\n")
            remove_durably(probe)
        except SkerryError as error:
            yield fail("disk", error.message, error.hint)
        else:
            yield ok("disk", "a file can be written, made durable and removed")


CHECKS: Final[tuple[Check, ...]] = (daemon, unit, configuration, permissions, disk)


# --- parts --------------------------------------------------------------------------------------------


def _own_files(data: Path) -> Iterator[Path]:
    for folder in (data, data / "state", data / "store", data / "models"):
        if folder.is_dir():
            yield from (path for path in folder.iterdir() if not stat.S_ISSOCK(path.lstat().st_mode))


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def output(command: Sequence[str]) -> str:
    """What a program prints; nothing if it is missing, or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
