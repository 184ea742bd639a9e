"""The first detector, and the service that feeds it: evidence and effect, twice in a row, one alert."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from tests.fleet.fleet_harness import START_MS, Fleet
from tests.fleet.outbox_sender import Outbox, Receiver
from tests.fleet.test_statistics import REFERENCE_ROWS, normal_feature, sketch_of
from tests.waiting import wait_until

from skerry_contract.digests import Digest, prefix8
from skerry_contract.messages import Severity
from skerry_contract.monitoring import MonitoringSpec, spec_hash
from skerry_contract.summary import Flags, WindowSummary
from skerry_fleet.drift.detector import TRANSITIONS, Detector, Judgement, Phase, capped, judge
from skerry_fleet.drift.service import UNJUDGED, DriftService
from skerry_fleet.telemetry.specs import References

SPEC = MonitoringSpec(
    rows=REFERENCE_ROWS, features=(normal_feature(), replace(normal_feature(), name="contrast"))
)


def window(
    shift: float = 0.0, n: int = 1000, *, seq: int = 1, nulls: int = 0, values: Iterable[float] | None = None
) -> WindowSummary:
    """Brightness is shifted, contrast never."""
    rng = np.random.default_rng(seq)
    brightness = np.array(list(values)) if values is not None else rng.normal(shift, 1, n)
    contrast = rng.normal(0, 1, len(brightness) + nulls)
    first, second = SPEC.features
    return WindowSummary(
        spec_hash=spec_hash(SPEC.to_bytes()),
        bundle=bytes(8),
        boot=bytes(16),
        seq=seq,
        start_utc_ms=START_MS + seq * 60_000,
        start_mono_ms=seq * 60_000,
        duration_ms=60_000,
        clock_quality=1,
        rows=len(contrast),
        features=(
            sketch_of(first, brightness, nulls=nulls),  # type: ignore[arg-type]
            sketch_of(second, contrast),  # type: ignore[arg-type]
        ),
    )


def phases(detector: Detector, shifts: Iterable[float]) -> list[Phase | None]:
    found: list[Phase | None] = []
    for seq, shift in enumerate(shifts, 1):
        judgement = detector.update(window(shift, seq=seq))
        found.append(judgement.phase if judgement else None)
    return found


# --- one window ---


def test_a_dark_camera_is_major_and_the_feature_comes_first() -> None:
    first, second = judge(SPEC, window(-3.1, 400))
    assert first.distance.name == "brightness"
    assert first.severity is Severity.MAJOR
    assert second.severity is None
    assert first.sentence() == "brightness: \N{MINUS SIGN}3.2 sigma, TV 0.91, 35% out of range"


def test_evidence_without_effect_is_for_information() -> None:
    found = judge(SPEC, window(0.06, 1_000_000))
    assert [finding.severity for finding in found] == [Severity.INFO, None]


def test_effect_without_evidence_is_nothing() -> None:
    assert {finding.severity for finding in judge(SPEC, window(0.3, 250))} == {None}


def test_a_warning_lies_between() -> None:
    assert judge(SPEC, window(0.16, 50_000))[0].severity is Severity.WARN


def test_nulls_that_jump_are_major_even_if_all_values_are_missing() -> None:
    half = judge(SPEC, window(0, 500, nulls=500))[0]
    assert (half.severity, half.distance.name) == (Severity.MAJOR, "brightness")
    assert "nulls 50%" in half.sentence()
    assert judge(SPEC, window(nulls=1000, values=()))[0].severity is Severity.MAJOR


def test_a_stuck_sensor_is_major() -> None:
    assert judge(SPEC, window(values=[0.01] * 1000))[0].severity is Severity.MAJOR


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_correlated_rows_without_drift_raise_no_alert(rho: float) -> None:
    rng = np.random.default_rng(int(rho * 10))
    detector = Detector(SPEC)
    last = 0.0
    seen: set[Phase] = set()
    for seq in range(1, 101):
        noise = rng.normal(0, np.sqrt(1 - rho**2), 300)
        values = []
        for step in noise:
            last = rho * last + float(step)
            values.append(last)
        judgement = detector.update(window(seq=seq, values=values))
        assert judgement is not None
        seen.add(judgement.phase)
    assert Phase.ALERT not in seen


# --- several windows ---


def test_the_table_covers_every_phase_and_outcome() -> None:
    assert set(TRANSITIONS) == {(phase, drifted) for phase in Phase for drifted in (False, True)}


def test_one_bad_window_is_a_suspicion_and_two_are_an_alert() -> None:
    assert phases(Detector(SPEC), [0, -3, 0, -3, -3]) == ["normal", "suspect", "normal", "suspect", "alert"]


def test_an_alert_ends_after_two_good_windows() -> None:
    assert phases(Detector(SPEC), [-3, -3, 0, -3, 0, 0]) == [
        "suspect",
        "alert",
        "recovering",
        "alert",
        "recovering",
        "normal",
    ]


def test_small_windows_add_up_before_they_are_judged() -> None:
    detector = Detector(SPEC)
    judged = [detector.update(window(-3, 90, seq=seq)) for seq in range(1, 7)]
    assert [judgement and (judgement.rows, judgement.phase) for judgement in judged] == [
        None,
        None,
        (270, "suspect"),
        None,
        None,
        (270, "alert"),
    ]


def test_it_remembers_across_a_restart() -> None:
    memory: bytes | None = None
    last: Judgement | None = None
    for seq in range(1, 7):
        detector = Detector(SPEC, memory)
        last = detector.update(window(-3, 90, seq=seq))
        memory = detector.dump()
    assert last is not None
    assert last.phase is Phase.ALERT


def test_windows_of_another_version_are_not_added_to_those_of_this() -> None:
    detector = Detector(SPEC)
    assert detector.update(window(0, 150)) is None
    assert detector.update(replace(window(0, 150, seq=2), bundle=b"other---")) is None
    judgement = detector.update(replace(window(0, 150, seq=3), bundle=b"other---"))
    assert judgement is not None
    assert judgement.rows == 300


def test_a_major_effect_on_few_devices_is_a_warning() -> None:
    assert capped(Severity.MAJOR, 0.04) is Severity.WARN
    assert capped(Severity.MAJOR, 0.05) is Severity.MAJOR
    assert capped(Severity.INFO, 0.01) is Severity.INFO


# --- the service ---


class Camera:
    """A device that sends windows of `SPEC`, and the drift service that scores them."""

    def __init__(self, fleet: Fleet, receiver: Receiver, drift: DriftService, outbox: Outbox) -> None:
        self.fleet = fleet
        self.receiver = receiver
        self.drift = drift
        self.outbox = outbox

    def sees(self, *shifts: float, n: int = 400, **changes: object) -> None:
        for shift in shifts:
            seq = self.outbox.last + 1
            summary = replace(window(shift, n, seq=seq), bundle=prefix8(self.outbox.bundle), **changes)  # type: ignore[arg-type]
            self.receiver.take(self.outbox.telemetry(summary))
        self.drift.catch_up()

    def severities(self) -> list[str | None]:
        found = self.fleet.services.telemetry.windows(limit=500).items
        return [stored.severity for stored in sorted(found, key=lambda stored: stored.first)]

    def alerts(self, *, only_open: bool = True) -> list[dict[str, object]]:
        answer = self.fleet.client.get("/v1/alerts", params={"open": only_open}).json()
        items: list[dict[str, object]] = answer["items"]
        return items


@pytest.fixture
def bundle(fleet: Fleet) -> Digest:
    return fleet.publish("1.0.0", 1, spec=SPEC.to_bytes())


def new_drift(fleet: Fleet) -> DriftService:
    services = fleet.services
    return DriftService(
        db=services.db,
        days=services.days,
        clock=services.clock,
        references=References(services.db, services.models),
        alerts=services.alerts,
    )


@pytest.fixture
def camera(fleet: Fleet, bundle: Digest) -> Camera:
    fleet.enrol("gate-3", "gate-4", online=False)
    return Camera(fleet, Receiver(fleet), new_drift(fleet), Outbox("gate-3", bundle, spec=SPEC))


def test_a_dark_camera_is_one_alert_that_names_device_and_feature(camera: Camera) -> None:
    camera.sees(0, -3.1)
    assert camera.alerts() == []
    camera.sees(-3.1, -3.1, -3.1)
    (alert,) = camera.alerts()
    assert (alert["device"], alert["model"], alert["kind"]) == ("gate-3", "digits", "drift")
    assert alert["severity"] == "major"
    assert alert["times"] == 3
    assert str(alert["title"]).startswith("gate-3: ")
    assert str(alert["detail"]).startswith("brightness: \N{MINUS SIGN}3.")
    assert "contrast" not in str(alert["detail"])


def test_light_again_closes_the_alert(camera: Camera) -> None:
    camera.sees(-3, -3, 0)
    assert len(camera.alerts()) == 1
    camera.sees(0)
    assert camera.alerts() == []
    assert len(camera.alerts(only_open=False)) == 1
    camera.sees(-3, -3)
    assert len(camera.alerts(only_open=False)) == 2


def test_scores_are_shown_by_feature_the_farthest_first(camera: Camera) -> None:
    camera.sees(-3)
    (shown,) = camera.fleet.client.get("/v1/drift", params={"device": "gate-3", "model": "digits"}).json()[
        "items"
    ]
    first, second = shown["scores"]["features"]
    assert (shown["severity"], first["name"], first["severity"]) == ("major", "brightness", "major")
    assert first["shift"] == pytest.approx(-3, abs=0.2)
    assert (second["name"], second["severity"]) == ("contrast", "")
    assert camera.fleet.client.get("/v1/drift", params={"device": "gate-4"}).json()["items"] == []


def test_small_windows_are_marked_as_waiting(camera: Camera) -> None:
    camera.sees(0, 0, 0, n=90)
    assert camera.severities() == [UNJUDGED, UNJUDGED, ""]


def test_a_late_window_is_scored_and_disturbs_nothing(camera: Camera) -> None:
    camera.sees(0, -3)
    camera.sees(-3, start_utc_ms=START_MS - 86_400_000, flags=Flags.HISTORICAL)
    assert camera.severities() == ["", "major", "major"]
    assert camera.alerts() == []
    camera.sees(-3)
    assert len(camera.alerts()) == 1


def test_a_restarted_server_goes_on_where_it_was(camera: Camera) -> None:
    camera.sees(-3)
    camera.drift = new_drift(camera.fleet)
    camera.sees(-3)
    assert len(camera.alerts()) == 1


def test_midnight_changes_nothing(camera: Camera) -> None:
    camera.sees(-3)
    camera.fleet.clock.ms += 86_400_000
    camera.sees(-3)
    assert len(camera.alerts()) == 1
    assert camera.severities() == ["major", "major"]


def test_windows_of_yesterday_that_were_not_scored_are_scored(camera: Camera) -> None:
    summary = replace(window(-3, 400), bundle=prefix8(camera.outbox.bundle))
    camera.receiver.take(camera.outbox.telemetry(summary))
    camera.fleet.clock.ms += 86_400_000
    camera.sees(-3)
    assert camera.severities() == ["major", "major"]
    assert len(camera.alerts()) == 1


def test_the_thread_scores_what_is_committed(camera: Camera) -> None:
    drift = new_drift(camera.fleet)
    drift.start()
    try:
        for seq in (1, 2):
            summary = replace(window(-3, 400, seq=seq), bundle=prefix8(camera.outbox.bundle))
            camera.receiver.take(camera.outbox.telemetry(summary))
            drift.wake()
        wait_until(lambda: len(camera.alerts()) == 1, "the alert is raised")
    finally:
        drift.stop()
