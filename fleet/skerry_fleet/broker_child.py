"""The few lines between fork and mosquitto: drop privileges, die with the server, become the broker.

Run as a script by a bare interpreter (``-I -S``), so it imports nothing of this project. The order matters:
Linux forgets the parent-death signal when the user changes, and a parent may die before it is set.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, uid: int, gid: int, command: list[str]) -> None:
    """Replace this process; ``uid`` below 0 keeps the user."""
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the server ended before its broker began")
    os.execv(command[0], command)  # noqa: S606 the very purpose; no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
