"""``skerry-runtime status``: what people read, and that programs still find every key they know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.runtime.agent_world import QUICK, Device, Headquarters, make_bundle

from skerry_contract.signing import EcdsaSigner
from skerry_runtime.cli_status import describe, duration

KEYS = {
    "version", "device", "org", "pid", "zygote_pid", "uptime_s", "boot", "fleet", "serve", "engines",
    "models", "outbox",
}  # fmt: skip
MODEL_KEYS = {
    "active", "health", "state", "phase", "target", "target_version", "transaction", "reason", "error",
    "since", "bytes_done", "bytes_total", "floor", "fallback_generation", "socket",
}  # fmt: skip
OUTBOX_KEYS = {"stream", "waiting_rows", "used_bytes", "acknowledged", "gaps", "lost", "error"}


def status(**changes: Any) -> dict[str, Any]:
    model = {
        "active": {"version": "1.0.0", "variant": "fp32", "engine": "onnx"},
        "health": {"requests": 7, "failures": 1, "latency_p95_us": 1500.0, "rss_bytes": 50 << 20},
        "slots": [
            {"generation": 2, "state": "active", "health": "good", "version": "1.0.0", "error": ""},
            {"generation": 1, "state": "inactive", "health": "bad", "version": "", "error": "damaged"},
        ],
        "phase": "rolled_back", "target_version": "2.0.0", "transaction": "cafe",
        "reason": "fp32: it runs here",
        "bytes_done": 0, "bytes_total": 0,
        "error": {"code": "selftest", "message": "it crashed", "hint": "Pack another variant."},
    }  # fmt: skip
    return {
        "device": "pi-7", "org": "acme", "version": "1", "pid": 5, "uptime_s": 93784.0,
        "fleet": {"state": "connected", "revision": 3, "error": None},
        "serve": {"socket": "/run/s.sock", "http": None},
        "models": {"digits": model},
        "outbox": {
            "waiting_rows": 4, "used_bytes": 1 << 20, "gaps": 2, "lost": 0, "error": "the disk is full",
        },
        "service": {"withheld": 3, "missing": ["outbox"]},
        **changes,
    }  # fmt: skip


def test_people_read_state_slots_last_error_and_next_step() -> None:
    assert describe(status()).splitlines() == [
        "pi-7 (acme)  skerry-runtime 1  process 5  up 1 d 2 h",
        "fleet    connected  desired revision 3",
        "serving  /run/s.sock",
        "model    digits 1.0.0  fp32 on onnx  7 requests, 1 failed, p95 1.50 ms, 50 MiB",
        "  slot   active    good     1.0.0  generation 2",
        "  slot   inactive  bad      ?  generation 1  damaged",
        "         2.0.0: rolled_back  (transaction cafe)",
        "         why this variant: fp32: it runs here",
        "         last error: selftest: it crashed",
        "         next: Pack another variant.",
        "         its log: skerry-runtime logs --transaction cafe",
        "outbox   4 rows wait, 1.0 MiB  2 gaps",
        "         last error: the disk is full",
        "         next: skerry-runtime doctor",
        "watchdog waits for outbox",
    ]


def test_flash_wear_is_told_once_it_is_known() -> None:
    outbox = {**status()["outbox"], "flash": {"bytes_per_day": 3 << 20, "card_years": 41.5}}
    assert "flash    3.00 MiB written a day, the card lasts 41.5 years" in describe(status(outbox=outbox))


def test_an_empty_device_says_how_to_begin() -> None:
    assert "none yet: roll one out" in describe(status(models={}))


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.2, "5 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (86400, "1 d 0 h")]
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
    slots = [(slot["state"], slot["health"], slot["version"]) for slot in model["slots"]]
    assert slots == [("active", "good", "2.0.0"), ("inactive", "good", "1.0.0")]
    assert found["service"] == {
        "manager": False, "ready": False, "watchdog_s": 0.0, "pings": 0, "withheld": 0, "missing": [],
    }  # fmt: skip
