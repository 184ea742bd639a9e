"""What is tortured: each scenario is a folder in some state, and a deed that is done there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from tests.torture.deeds_models import Order

NEXT: Final = 6
"""The release that is installed after a case."""
LAST: Final = 14
"""With this release a device's life ends; one more is installed after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A deed on a folder that `base` made."""

    name: str
    base: tuple[Order, ...]
    order: Order
    outbox: bool = False
    rotten: bool = False
    """The outbox was damaged before: nothing is promised any more."""
    serving: bool = False
    """Something answers when the deed begins."""
    first: int | None = None
    """A release that may be put on trial without further ado, because there is no other."""
    following: int = NEXT
    """The release that is installed afterwards."""
    after: dict[str, Any] = field(default_factory=dict)
    """Arguments of the examination."""


def _order(deed: str, **arguments: Any) -> Order:
    return Order(deed=deed, arguments=arguments)


_TWO: Final = (_order("carry_on", release=1), _order("carry_on", release=2))
_TRIED: Final = (*_TWO, _order("install_file", release=3))

MODELS: Final = (
    Scenario(name="first-install", base=(), order=_order("install_file", release=1), first=1),
    Scenario(name="install", base=_TWO, order=_order("install_file", release=3), serving=True),
    Scenario(name="download", base=_TWO, order=_order("install_order", release=3), serving=True),
    Scenario(name="confirm", base=_TRIED, order=_order("start")),
    Scenario(name="condemn", base=_TRIED, order=_order("start", canary_ok=False)),
    Scenario(name="roll-back", base=_TWO, order=_order("roll_back"), serving=True),
    Scenario(name="collect", base=(*_TWO, _order("litter")), order=_order("collect")),
    Scenario(name="recover", base=(*_TWO, _order("make_mess")), order=_order("start")),
    Scenario(name="offline-install", base=_TWO, order=_order("offline_install", release=3)),
    Scenario(name="offline-roll-back", base=_TWO, order=_order("offline_roll_back")),
)
OUTBOX: Final = (
    Scenario(name="outbox-write", base=(), order=_order("outbox_write", count=8), outbox=True),
    Scenario(
        name="outbox-migrate",
        base=(_order("outbox_first_schema"),),
        order=_order("outbox_promise_first_schema", begin=100, count=2, acknowledging=False),
        outbox=True,
    ),
    Scenario(
        name="outbox-full",
        base=(),
        order=_order("outbox_crowded", pages=40, count=16, noise=900, acknowledging=False),
        outbox=True,
        after={"budget": 1 << 20},
    ),
    Scenario(
        name="outbox-shrink",
        base=(),
        order=_order("outbox_write", count=10, noise=2_500, acknowledging=False, drain=True),
        outbox=True,
    ),
    Scenario(
        name="outbox-set-aside",
        base=(_order("outbox_write", count=12, noise=300), _order("outbox_rot")),
        order=_order("outbox_write", count=3),
        outbox=True,
        rotten=True,
    ),
)
SCENARIOS: Final = {scenario.name: scenario for scenario in (*MODELS, *OUTBOX)}
