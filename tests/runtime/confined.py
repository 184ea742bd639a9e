"""Runs a command under the system-call rules of a systemd unit, by libseccomp, without systemd.

``python confined.py UNIT COMMAND...``: what the unit says by SystemCallFilter, RestrictAddressFamilies,
RestrictNamespaces and MemoryDenyWriteExecute is loaded as systemd loads it (systemd.exec(5)), then COMMAND is
executed. libseccomp comes with the package systemd.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EQ, _MASKED_EQ = 4, 7
_EXECUTE, _WRITE_EXECUTE = 4, 6
_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_FAMILIES = 46


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


_seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
_seccomp.seccomp_init.restype = ctypes.c_void_p
_seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
_seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
_seccomp.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(_Compare),
]


def settings(unit: Path) -> Iterator[tuple[str, str]]:
    """Keys and values of a unit, in order."""
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z]+", key):
            yield key, value


def allowed_calls(unit: Path) -> set[str]:
    """Names of the system calls that the unit's SystemCallFilter lines leave."""
    found: set[str] = set()
    for value in (value for key, value in settings(unit) if key == "SystemCallFilter"):
        names = {name for word in value.removeprefix("~").split() for name in _expand(word)}
        found = found - names if value.startswith("~") else found | names
    # systemd lets these through whatever the filter says: without them nothing can be executed.
    return found | set(_expand("@default")) | {"execve", "exit", "exit_group", "rt_sigreturn"}


def _expand(word: str) -> list[str]:
    if not word.startswith("@"):
        return [word]
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
    )
    names = [line.strip() for line in done.stdout.splitlines()[1:]]
    return [name for item in names if item and not item.startswith("#") for name in _expand(item)]


def confine(unit: Path) -> None:
    """Load the unit's rules into this process, for good."""
    found = dict(settings(unit))
    calls = allowed_calls(unit)
    # The rules on arguments first: afterwards there is no more way to load any.
    context = _seccomp.seccomp_init(_ALLOW)
    families = {int(getattr(socket, name)) for name in found["RestrictAddressFamilies"].split()}
    for family in set(range(_FAMILIES)) - families:
        _rule(context, errno.EAFNOSUPPORT, "socket", [(0, _EQ, family, 0)])
    if found.get("RestrictNamespaces") == "yes":
        _rule(context, errno.ENOSYS, "clone3", [])
        _rule(context, errno.EPERM, "setns", [])
        for flag in _NAMESPACES:
            for call in ("clone", "unshare"):
                _rule(context, errno.EPERM, call, [(0, _MASKED_EQ, flag, flag)])
    if found.get("MemoryDenyWriteExecute") == "yes":
        _rule(context, errno.EPERM, "mmap", [(2, _MASKED_EQ, _WRITE_EXECUTE, _WRITE_EXECUTE)])
        for call in ("mprotect", "pkey_mprotect"):
            _rule(context, errno.EPERM, call, [(2, _MASKED_EQ, _EXECUTE, _EXECUTE)])
        _rule(context, errno.EPERM, "shmat", [(2, _MASKED_EQ, 0o100000, 0o100000)])
    _load(context)
    context = _seccomp.seccomp_init(_ERRNO | errno.EPERM)
    for name in sorted(calls):
        number = _seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            _add(context, _ALLOW, number, [])
    _load(context)


def _rule(context: int, error: int, name: str, comparisons: Sequence[tuple[int, int, int, int]]) -> None:
    number = _seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        _add(context, _ERRNO | error, number, comparisons)


def _add(context: int, action: int, number: int, comparisons: Sequence[tuple[int, int, int, int]]) -> None:
    array = (_Compare * len(comparisons))(*(_Compare(*comparison) for comparison in comparisons))
    failed = _seccomp.seccomp_rule_add_array(context, action, number, len(comparisons), array)
    if failed:
        raise OSError(-failed, "seccomp_rule_add_array")


def _load(context: int) -> None:
    failed = _seccomp.seccomp_load(context)
    if failed:
        raise OSError(-failed, "seccomp_load")


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - it becomes the command
