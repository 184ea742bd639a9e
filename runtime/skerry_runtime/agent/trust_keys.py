"""Are the keys of the configuration keys? Looked at soon after a start, not when the first update comes.

A key that is none stops no model: what is good goes on serving, and a person hears of it by the log, by
``skerry-runtime status`` and at the fleet. The look waits until what is installed answers, so that it costs
the first answer nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from skerry_contract.errors import ConfigError, SkerryError

from . import trust_process
from .context import Context
from .log import get_logger
from .trust import KEY_HINT

LOOK_SECONDS: Final = 0.25
"""Between two looks at whether everything answers."""
LOOKS: Final = 120
"""After so many of them it is not waited for any longer."""
_log = get_logger("trust")


class TrustedKeys:
    """Used in the loop's thread; the trust process reads the keys."""

    def __init__(self, context: Context, starting: Callable[[], bool]) -> None:
        """``starting``: something that is installed does not answer yet."""
        self._c = context
        self._keys = context.config.trust.by_place()
        self._starting = starting
        self._looks = 0
        self._checked = False
        self._problems: Mapping[str, str] = {}

    def start(self) -> None:
        """Check as soon as everything answers."""
        self._looks += 1
        if self._starting() and self._looks < LOOKS:
            self._c.loop.call_later(LOOK_SECONDS, self.start)
        elif self._keys:
            self._c.jobs.submit(lambda _: trust_process.check_keys(self._keys), self._done, self._failed)

    def status(self) -> dict[str, Any]:
        """For people, as plain JSON: the keys' places, and what is wrong with those that cannot be used."""
        return {"keys": list(self._keys), "checked": self._checked, "problems": dict(self._problems)}

    def _done(self, problems: Mapping[str, str]) -> None:
        self._checked, self._problems = True, problems
        for place, problem in problems.items():
            error = ConfigError(f"{place} is {problem}", hint=KEY_HINT)
            self._c.journal.event("trust.unusable", "no update can be verified; serving goes on", error=error)

    def _failed(self, error: SkerryError) -> None:
        _log.error("the keys of the configuration cannot be checked", extra={"error": error})
