"""Checks in a trace of system calls whether what was installed would survive a power cut at any moment.

A kill does not lose what was written; a power cut loses what was not fsync'd, and keeps the later of two
steps without the earlier. So the order is judged, not the outcome. The rules, for every name in the data
folder that does not say it is unfinished (``.tmp``, ``.part``, ``.map``):

1. It is never written in place: it comes by a rename, or as a link to what came by one.
2. What is renamed was fsync'd since it was last written; of a folder also the names in it.
3. The folder that got the name is fsync'd afterwards; what is linked had its name for good.
4. A pointer (``pending``, ``current``) changes only when all other names of its model are for good.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,truncate,ftruncate,fallocate,copy_file_range,sendfile,"
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat"
)
STRACE = ("strace", "-f", "-y", "-s", "0", "-e", "signal=none", "-e", f"trace={CALLS}")
"""To be completed by ``-o FILE`` and the command."""
_UNFINISHED = (".tmp", ".part", ".map")
_APART = re.compile(r"lock|run/.*|outbox\.db.*")
"""Not by renames: a lock, sockets, and SQLite's own files."""
_POINTERS = ("pending", "current")
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)")
_DONE = re.compile(r"(.*)\) += (-?\d+)(?:[ <].*)?")
_DESCRIPTOR = re.compile(r"\s*(?:\d+|AT_FDCWD)<([^>]*)>")
_PATH = re.compile(r'\s*(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that succeeded, or (``done`` is false) that begins."""

    name: str
    text: str
    done: bool

    def descriptor(self) -> str:
        """The file behind the first argument."""
        match = _DESCRIPTOR.match(self.text)
        return match[1] if match else ""

    def paths(self) -> list[str]:
        """Absolute, of the arguments in their order."""
        return [posixpath.join(base or "/", path) for base, path in _PATH.findall(self.text)]


def read_calls(trace: str) -> Iterator[Call]:
    """Each call at its begin and, if it succeeded, at its end; threads are put together."""
    begun: dict[tuple[str, str], str] = {}
    for line in trace.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        process, name, rest = match.groups()
        if rest.endswith("<unfinished ...>"):
            begun[process, name] = text = rest.removesuffix("<unfinished ...>")
            yield Call(name, text, done=False)
            continue
        end = _DONE.fullmatch(rest)
        if end is None:
            continue
        text = begun.pop((process, name), "") + end[1]
        if "resumed>" not in line:
            yield Call(name, text, done=False)
        if int(end[2]) >= 0:
            yield Call(name, text, done=True)


@dataclass
class Order:
    """What is not for good yet, and what was done too early."""

    root: str
    renames: int = 0
    """Of finished names: a trace without any shows nothing."""
    faults: list[str] = field(default_factory=list)
    _unsynced: set[str] = field(default_factory=set)
    """Files with content that a power cut would take."""
    _loose: set[str] = field(default_factory=set)
    """Names that a power cut would take, or bring back."""
    _syncing: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)

    def take(self, call: Call) -> None:
        """Follow one call."""
        match call.name:
            case "open" | "openat" | "creat":
                self._opened(call)
            case "fsync" | "fdatasync":
                self._synced(call)
            case "rename" | "renameat" | "renameat2" if call.done:
                self._renamed(*call.paths()[:2])
            case "link" | "linkat" if call.done:
                self._linked(*call.paths()[:2])
            case "unlink" | "unlinkat":
                self._unlinked(call.paths()[0], call.done)
            case "mkdir" | "mkdirat" if call.done:
                self._named(call.paths()[0])
            case "truncate" if not call.done:
                self._written(call.paths()[0])
            case "write" | "pwrite64" | "writev" | "pwritev" | "ftruncate" | "fallocate" if not call.done:
                self._written(call.descriptor())
            case "copy_file_range" | "sendfile" if not call.done:
                raise AssertionError(f"{call.name} is not followed: teach it to this checker")

    def end(self) -> None:
        """Nothing follows: what is loose now stays so."""
        self.faults += [f"{self._short(path)}: its folder is never fsync'd" for path in sorted(self._loose)]

    # --- one call -------------------------------------------------------------------------------------

    def _opened(self, call: Call) -> None:
        path = call.paths()[0]
        if call.done or not self._ours(path) or not re.search(r"O_(WRONLY|RDWR|TRUNC|CREAT)", call.text):
            return
        if not _unfinished(path):
            self.faults.append(f"{self._short(path)}: opened for writing in place")

    def _written(self, path: str) -> None:
        if self._ours(path):
            self._unsynced.add(path)

    def _synced(self, call: Call) -> None:
        path = call.descriptor()
        if not call.done:
            # What is written while it runs may be in it or not.
            self._syncing[path] = (
                self._unsynced & {path},
                {name for name in self._loose if posixpath.dirname(name) == path},
            )
        elif path in self._syncing:
            contents, names = self._syncing.pop(path)
            self._unsynced -= contents
            self._loose -= names

    def _renamed(self, old: str, new: str) -> None:
        if not self._ours(new):
            return
        if not _unfinished(new):
            self.renames += 1
            inside = old + "/"
            for path in sorted(self._unsynced):
                if path == old or path.startswith(inside):
                    self.faults.append(f"{self._short(new)}: renamed before {self._short(path)} is fsync'd")
            for path in sorted(self._loose):
                if path.startswith(inside):
                    self.faults.append(f"{self._short(new)}: renamed before it holds {self._short(path)}")
            self._pointer(new)
        self._unsynced = {_moved(path, old, new) for path in self._unsynced}
        self._loose = {_moved(path, old, new) for path in self._loose if path != old}
        self._named(new)

    def _linked(self, old: str, new: str) -> None:
        if self._ours(new):
            if old in self._unsynced or old in self._loose:
                self.faults.append(f"{self._short(new)}: linked before {self._short(old)} is for good")
            self._named(new)

    def _unlinked(self, path: str, done: bool) -> None:
        if not self._ours(path):
            return
        if not done:
            self._pointer(path)
            return
        self._unsynced.discard(path)
        self._loose.discard(path)
        if _is_pointer(path):
            # It may be back after a power cut.
            self._loose.add(path)

    def _named(self, path: str) -> None:
        if self._ours(path) and not _unfinished(path):
            self._loose.add(path)

    def _pointer(self, path: str) -> None:
        """A pointer is about to change."""
        if _is_pointer(path):
            model = posixpath.dirname(posixpath.dirname(path)) + "/"
            self.faults += [
                f"{self._short(path)}: changed before {self._short(other)} is for good"
                for other in sorted(self._loose)
                if other.startswith(model) and other != path
            ]

    def _ours(self, path: str) -> bool:
        return path.startswith(self.root + "/") and not _APART.fullmatch(self._short(path))

    def _short(self, path: str) -> str:
        return path.removeprefix(self.root + "/")


def check_order(trace: Path, root: Path) -> Order:
    """Judge the whole trace of whatever changed the data folder ``root``."""
    order = Order(str(root.resolve()))
    for call in read_calls(trace.read_text()):
        order.take(call)
    order.end()
    return order


def _unfinished(path: str) -> bool:
    return path.endswith(_UNFINISHED)


def _is_pointer(path: str) -> bool:
    folder, name = posixpath.split(path)
    return name in _POINTERS and posixpath.basename(folder) == "state"


def _moved(path: str, old: str, new: str) -> str:
    return new + path.removeprefix(old) if path == old or path.startswith(old + "/") else path


def traced(trace: Path, command: Sequence[str]) -> list[str]:
    """The command that runs another one under strace."""
    return [*STRACE, "-o", str(trace), *command]
