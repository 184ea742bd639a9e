"""``skerry-runtime status``: what people read, and that programs still find every key they know."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.agent_world import QUICK, Device, Headquarters, make_bundle

from skerry_contract.errors import ConflictError
from skerry_contract.signing import EcdsaSigner
from skerry_runtime import cli_status
from skerry_runtime.cli_status import describe, duration

KEYS = {
    "version", "device", "org", "pid", "zygote_pid", "uptime_s", "boot", "fleet", "trust", "clock", "windows",
    "serve", "engines", "models", "outbox", "service",
}  # fmt: skip
MODEL_KEYS = {
    "active", "health", "state", "phase", "target", "target_version", "transaction", "reason", "error",
    "since", "bytes_done", "bytes_total", "floor", "fallback_generation", "socket", "probation", "trouble",
    "slots",
}  # fmt: skip
ACTIVE_KEYS = {
    "digest", "version", "release", "variant", "engine", "engine_version", "execution", "generation", "pid",
    "budgets", "reason",
}  # fmt: skip
OUTBOX_KEYS = {
    "stream", "waiting_rows", "used_bytes", "budget_bytes", "acknowledged", "gaps", "merged", "lost", "error",
    "flash",
}  # fmt: skip
CARD = {"tbw_bytes": 0, "card_bytes": 32 * 10**9, "cycles": 500, "amplification": 4.0}
FLASH = {
    "measured": True, "written_bytes": 1 << 20, "bytes_per_day": None, "card_years": None, "assumed": CARD,
}  # fmt: skip


def status(**changes: Any) -> dict[str, Any]:
    model = {
        "active": {
            "version": "1.0.0", "variant": "fp32", "engine": "onnx", "engine_version": "1.32.0",
            "execution": "cpu, 1 thread", "pid": 6, "reason": "fp32: it runs here",
            "budgets": {"ram_bytes": 96 << 20, "latency_p95_us": 2000},
        },
        "health": {"requests": 7, "failures": 1, "latency_p95_us": 1500.0, "rss_bytes": 50 << 20},
        "slots": [
            {"generation": 2, "state": "active", "health": "good", "version": "1.0.0", "error": ""},
            {"generation": 1, "state": "inactive", "health": "bad", "version": "", "error": "damaged"},
        ],
        "state": "rolled_back", "target_version": "2.0.0", "transaction": "cafe", "probation": None,
        "trouble": None,
        "reason": "int8: it runs here", "bytes_done": 0, "bytes_total": 0,
        "error": {"code": "selftest", "message": "it crashed", "hint": "Pack another variant."},
    }  # fmt: skip
    return {
        "device": "pi-7", "org": "acme", "version": "1", "pid": 5, "uptime_s": 93784.0,
        "fleet": {"state": "connected", "revision": 3, "error": None},
        "trust": {"keys": ["trust.director"], "checked": True, "problems": {}},
        "clock": {
            "wall_ms": 1_780_000_000_000, "floor_ms": 1_770_000_000_000, "quality": 1, "synchronised": True,
        },
        "windows": {"window_seconds": 3600.0, "window_rows": 100_000},
        "serve": {"socket": "/run/s.sock", "http": None},
        "models": {"digits": {**model, **changes.pop("model", {})}},
        "outbox": {
            "waiting_rows": 4, "used_bytes": 1 << 20, "budget_bytes": 64 << 20, "gaps": 2, "lost": 0,
            "merged": 0, "error": "the disk is full", "flash": FLASH,
        },
        "service": {"withheld": 3, "missing": ["outbox"]},
        **changes,
    }  # fmt: skip


def test_people_read_state_slots_last_error_and_next_step() -> None:
    assert describe(status()).splitlines() == [
        "pi-7 (acme)  skerry-runtime 1  process 5  up 1 d 2 h",
        "fleet    connected  desired revision 3",
        "clock    2026-05-28 20:26:40 UTC, synchronised",
        "serving  /run/s.sock",
        "model    digits 1.0.0  fp32 on onnx 1.32.0",
        "         runs by cpu, 1 thread",
        "         7 requests, 1 failed; p95 1.50 ms (budget 2); memory 50 of 96 MiB",
        "         why: fp32: it runs here",
        "  slot   active    good     1.0.0  generation 2",
        "  slot   inactive  bad      ?  generation 1  damaged",
        "         2.0.0 is rolled back  (transaction cafe)",
        "         last error: selftest: it crashed",
        "         next: Pack another variant.",
        "         its log: skerry-runtime logs --transaction cafe",
        "windows  one every 1 h or 100,000 requests",
        "outbox   4 rows wait for the fleet, 1.0 of 64 MiB",
        "         2 gaps that the fleet has not yet taken note of",
        "         last error: the disk is full",
        "         next: skerry-runtime doctor",
        "flash    1.00 MiB written; the card's life is known after an hour",
        "watchdog waits for outbox",
    ]


def test_a_model_whose_process_is_gone_says_why_and_what_to_do() -> None:
    active = {**status()["models"]["digits"]["active"], "pid": None}
    trouble = {"code": "engine", "message": "it ended by SIGSEGV", "hint": "Roll it back."}
    told = describe(status(model={"active": active, "trouble": trouble, "error": None}))
    assert "nothing answers now: its process is being started" in told
    assert "last error: engine: it ended by SIGSEGV\n         next: Roll it back." in told
    assert "7 requests" not in told


def test_a_daemon_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {key: value for key, value in status().items() if key != "clock"}
    monkeypatch.setattr(cli_status, "config_of", lambda options: None)
    monkeypatch.setattr(cli_status, "ask", lambda config, request: old)
    with pytest.raises(ConflictError, match="version 1 and does not say 'clock'") as caught:
        cli_status.status(argparse.Namespace(json=False))
    assert "Restart the daemon" in caught.value.hint


def test_what_probation_still_waits_for() -> None:
    waits = {"answered": 3, "answered_wanted": 20, "seconds": 10.0, "seconds_wanted": 100.0}
    told = describe(status(model={"state": "probation", "probation": waits, "error": None}))
    assert "2.0.0 is on probation  (transaction cafe)" in told
    assert "probation ends after 17 more answers and 1 min 30 s" in told
    done = {**waits, "answered": 21, "seconds": 101.0}
    assert "ends after the worker's next report" in describe(status(model={"probation": done}))


def test_flash_wear_is_told_once_it_is_known_with_what_is_assumed() -> None:
    def told(**flash: Any) -> str:
        return describe(status(outbox={**status()["outbox"], "flash": {**FLASH, **flash}}))

    known = {"bytes_per_day": 3 << 20, "card_years": 41.5}
    life = "flash    3.00 MiB written a day; the card lasts 41.5 years"
    assert f"{life} (32 GB, 500 cycles, 4 bytes worn for one)" in told(**known)
    by_maker = {**CARD, "tbw_bytes": 30 * 10**12, "amplification": 2.0}
    assert f"{life} (30 TB by its maker, 2 bytes worn for one)" in told(**known, assumed=by_maker)
    assert "the kernel does not tell" in told(measured=False)


def test_an_empty_device_says_how_to_begin() -> None:
    assert "none yet: roll one out" in describe(status(models={}))
    alone = {"state": "off", "revision": 0, "error": None}
    assert "none is configured: updates come by" in describe(status(fleet=alone))
    nobody = {"keys": [], "checked": False, "problems": {}}
    assert "keys     none: no bundle can be verified" in describe(status(trust=nobody))


@pytest.mark.parametrize(
    ("clock", "says"),
    [
        ({"synchronised": False}, "UTC, set, not synchronised"),
        ({"synchronised": False, "quality": 0}, "not synchronised: the fleet corrects the times"),
        (
            {"wall_ms": 0},
            "1970-01-01 00:00:00 UTC is wrong: it is at least 20486 d 2 h later; serving goes on",
        ),
    ],
)
def test_how_far_the_clock_can_be_believed(clock: dict[str, Any], says: str) -> None:
    assert says in describe(status(clock={**status()["clock"], **clock}))


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_are_as_narrow_as_the_terminal(columns: int) -> None:
    long = status(
        model={"reason": " ".join(["passed over because it needs more"] * 9), "state": "probation"},
        trust={"keys": ["a"], "checked": True, "problems": {"trust.engineers[0]": "no key " * 20}},
    )
    lines = describe(long, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("pi-7 (acme)")
    assert "".join(describe(long).split()) == "".join("".join(lines).split()), "nothing is left out"
    assert len(describe(long, 0).splitlines()) < len(lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.2, "5 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (3600, "1 h"), (86400, "1 d")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_programs_find_the_keys_they_know_and_the_slots(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, tmp_path: Path
) -> None:
    for release in (1, 2):
        made = make_bundle(signer, version=f"{release}.0.0", release=release)
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)
    found = device.status()
    assert set(found) >= KEYS
    assert set(found["outbox"]) >= OUTBOX_KEYS
    model = found["models"]["digits"]
    assert set(model) >= MODEL_KEYS
    assert set(model["active"]) >= ACTIVE_KEYS
    assert "first variant of the bundle that runs here" in model["active"]["reason"]
    assert describe(found, 80)
    slots = [(slot["state"], slot["health"], slot["version"]) for slot in model["slots"]]
    assert slots == [("active", "good", "2.0.0"), ("inactive", "good", "1.0.0")]
    assert found["service"] == {
        "manager": False, "ready": False, "watchdog_s": 0.0, "pings": 0, "withheld": 0, "missing": [],
    }  # fmt: skip
