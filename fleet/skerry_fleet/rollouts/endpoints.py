"""``/v1/rollouts``."""

from __future__ import annotations

from enum import StrEnum

from fastapi import APIRouter

from ..cursors import Page
from ..dependencies import Actor, Cursor, Limit, ServicesDep
from .states import Event
from .views import RolloutDetail, RolloutRequest, RolloutView

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])


class Act(StrEnum):
    """What an operator may do with a rollout."""

    START = Event.START
    PAUSE = Event.PAUSE
    RESUME = Event.RESUME
    ABORT = Event.ABORT
    REVERT = Event.REVERT


@router.post("", status_code=201)
def create_rollout(body: RolloutRequest, services: ServicesDep, actor: Actor) -> RolloutDetail:
    """Roll a published version out, in waves; each wave must pass its gate before the next begins."""
    return services.rollouts.create(body, actor)


@router.get("")
def list_rollouts(services: ServicesDep, cursor: Cursor = None, limit: Limit = 100) -> Page[RolloutView]:
    """Every rollout, newest first."""
    return services.rollouts.rollouts(cursor=cursor, limit=limit)


@router.get("/{rollout_id}")
def show_rollout(rollout_id: str, services: ServicesDep) -> RolloutDetail:
    """One rollout: its waves, their devices and phases, and each gate's verdict with its reasons."""
    return services.rollouts.rollout(rollout_id)


@router.post("/{rollout_id}/{act}")
def act_on_rollout(rollout_id: str, act: Act, services: ServicesDep, actor: Actor) -> RolloutDetail:
    """Start a draft, pause, resume, abort (take back what is not confirmed) or revert (set back
    everybody)."""
    return services.rollouts.act(rollout_id, Event(act), actor)
