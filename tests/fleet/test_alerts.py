"""Alerts: once for each cause, kept up to date, acknowledged by a person, over when it is over."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fleet.fleet_harness import Fleet

from skerry_contract.messages import Severity
from skerry_fleet.alerts.service import AlertKind


def raise_one(fleet: Fleet, severity: Severity = Severity.WARN, **changes: Any) -> int:
    told = {"title": "gate-3 is dark", "device": "gate-3", "model": "digits", **changes}
    with fleet.services.db.write() as db:
        return fleet.services.alerts.raise_alert(db, AlertKind.DRIFT, severity, **told)


def resolve_one(fleet: Fleet, **changes: Any) -> bool:
    key = {"device": "gate-3", "model": "digits", **changes}
    with fleet.services.db.write() as db:
        return fleet.services.alerts.resolve(db, AlertKind.DRIFT, **key)


def listed(fleet: Fleet, **query: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = fleet.client.get("/v1/alerts", params=query).json()["items"]
    return items


def test_the_same_is_raised_once_and_kept_up_to_date(fleet: Fleet) -> None:
    first = raise_one(fleet, detail="sigma 2")
    fleet.clock.sleep(60)
    assert raise_one(fleet, detail="sigma 3") == first
    (alert,) = listed(fleet)
    assert (alert["times"], alert["detail"]) == (2, "sigma 3")
    assert alert["updated_ms"] - alert["raised_ms"] == 60_000


def test_an_open_alert_keeps_its_highest_severity(fleet: Fleet) -> None:
    for severity in (Severity.WARN, Severity.MAJOR, Severity.WARN):
        raise_one(fleet, severity)
    assert listed(fleet)[0]["severity"] == "major"


@pytest.mark.parametrize("other", [{"device": "gate-4"}, {"model": "faces"}, {"cause": "nulls"}])
def test_another_device_model_or_cause_is_another_alert(fleet: Fleet, other: dict[str, Any]) -> None:
    raise_one(fleet)
    raise_one(fleet, **other)
    assert len(listed(fleet)) == 2
    assert not resolve_one(fleet, device="gate-9")


def test_what_is_over_is_no_longer_open_and_may_begin_again(fleet: Fleet) -> None:
    first = raise_one(fleet)
    assert resolve_one(fleet)
    assert not resolve_one(fleet)
    assert listed(fleet, open=True) == []
    assert raise_one(fleet) != first
    assert [alert["resolved_ms"] is None for alert in listed(fleet)] == [True, False]


def test_an_alert_that_is_not_committed_was_never_raised(fleet: Fleet) -> None:
    def interrupted() -> None:
        with fleet.services.db.write() as db:
            fleet.services.alerts.raise_alert(db, AlertKind.DRIFT, Severity.WARN, title="x", device="gate-3")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert listed(fleet) == []


def test_the_first_who_acknowledges_is_named_and_audited(fleet: Fleet) -> None:
    alert_id = raise_one(fleet)
    shown = fleet.client.post(f"/v1/alerts/{alert_id}/acknowledge").json()
    assert shown["acknowledged_by"] == "admin"
    fleet.clock.sleep(60)
    again = fleet.client.post(f"/v1/alerts/{alert_id}/acknowledge").json()
    assert again["acknowledged_ms"] == shown["acknowledged_ms"]
    actions = [row["action"] for row in fleet.client.get("/v1/audit").json()["items"]]
    assert actions.count("alert.acknowledged") == 1


def test_acknowledging_what_is_not_there_is_a_404(fleet: Fleet) -> None:
    answer = fleet.client.post("/v1/alerts/99/acknowledge")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_alerts_stand_in_the_devices_events_too(fleet: Fleet) -> None:
    raise_one(fleet)
    resolve_one(fleet)
    kinds = [
        row["kind"] for row in fleet.client.get("/v1/events", params={"device": "gate-3"}).json()["items"]
    ]
    assert kinds == ["alert.resolved", "alert.raised"]


def test_pages_and_the_filter_by_device(fleet: Fleet) -> None:
    for number in range(5):
        raise_one(fleet, device=f"gate-{number}")
    page = fleet.client.get("/v1/alerts", params={"limit": 3}).json()
    rest = fleet.client.get("/v1/alerts", params={"limit": 3, "cursor": page["next"]}).json()
    assert [alert["device"] for alert in page["items"] + rest["items"]] == [
        f"gate-{n}" for n in (4, 3, 2, 1, 0)
    ]
    assert rest["next"] is None
    assert [alert["device"] for alert in listed(fleet, device="gate-2")] == ["gate-2"]
