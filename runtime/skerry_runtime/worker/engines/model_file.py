"""A model's file behind one descriptor: what was hashed through it is what an engine reads or maps.

A name may be given to another file at any time; a descriptor stays with its own. Engines that open files
themselves get ``/proc/self/fd/N``, which is that same file. They map it or read it piece by piece, so the
model is never held twice, and pages of a mapped one are the kernel's to drop. The file lies in a store that
only the device's own user may write to.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from skerry_contract.errors import EngineError

from . import Content


class ModelFile:
    """Takes a descriptor over, and closes it when nobody needs the file any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: Final = descriptor
        self.path: Final = f"/proc/self/fd/{descriptor}"

    @classmethod
    def of(cls, data: bytes) -> ModelFile:
        """Bytes as a file in memory, for an engine that maps files only."""
        file = cls(os.memfd_create("skerry-model", os.MFD_CLOEXEC))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file.descriptor, rest) :]
        return file

    def content(self) -> Content:
        """Raises `EngineError` if there is nothing in it."""
        size = os.fstat(self.descriptor).st_size
        if not size:
            raise EngineError("the model is an empty file", hint="Check its size and digest.")
        return mmap.mmap(self.descriptor, size, prot=mmap.PROT_READ)

    def resident_bytes(self) -> int:
        """How much of it is mapped into this process and in memory now: what the kernel may drop."""
        name = os.fsencode(os.readlink(self.path))
        resident, ours = 0, False
        with open("/proc/self/smaps", "rb") as file:
            for line in file:
                key, _, rest = line.partition(b" ")
                if not key.endswith(b":"):
                    ours = line.rstrip(b"\n").endswith(b" " + name)
                elif ours and key == b"Rss:":
                    resident += int(rest.split()[0]) * 1024
        return resident

    def __del__(self) -> None:
        os.close(self.descriptor)
