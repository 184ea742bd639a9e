"""Run under a tracer that makes the disk fail: hands windows over, and says how that went as JSON.

Arguments: folder, how many windows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.runtime.outbox_rows import STAMP, event, window_bytes
from tests.waiting import wait_until

from skerry_runtime.agent import telemetry as module
from skerry_runtime.agent.telemetry import Telemetry


def main(folder: Path, count: int) -> None:
    module.RETRY_SECONDS = 0.02  # type: ignore[misc]
    telemetry = Telemetry(folder / "outbox.db", 64 << 20, lambda channel, payload: True, lambda: STAMP)
    telemetry.start()
    errors: set[str] = set()
    slowest = 0.0
    for number in range(1, count + 1):
        before = time.perf_counter()
        telemetry.add_window(window_bytes(number))
        telemetry.add_event(event("update.staged", number=number), critical=True)
        slowest = max(slowest, time.perf_counter() - before)

        def stored(rows: int = 2 * number) -> bool:
            errors.add(telemetry.status().error)
            return telemetry.status().waiting_rows >= rows

        # One after the other, so that each is a commit of its own.
        wait_until(stored, "both are stored")
    telemetry.stop(30)
    print(
        json.dumps({"errors": sorted(errors - {""}), "slowest_s": slowest, "lost": telemetry.status().lost})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
