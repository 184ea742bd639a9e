"""Where cases are carried out: scratch folder, releases, prepared folders, a fork server for each thread."""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.torture.deeds_models import Order
from tests.torture.forks import Done, Forks
from tests.torture.judge_models import Truth, faults_of_next
from tests.torture.judge_outbox import faults_of_outbox
from tests.torture.scenarios import LAST, Scenario
from tests.torture.tracing import count
from tests.torture.trees import copy_tree, reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is done to the code, by a name that does it again."""

    name: str
    run: Callable[[Bench], list[str]]
    """Returns what was wrong afterwards."""

    @property
    def means(self) -> str:
        return self.name.partition("/")[0]


@dataclass(slots=True)
class Bench:
    """Belongs to one thread."""

    shared: Path
    """Of all benches of a run: releases and prepared folders."""
    own: Path
    forks: Forks = field(default_factory=Forks)

    def __post_init__(self) -> None:
        self.own.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self.forks.close()

    def renew(self) -> None:
        """Another fork server, after a case that left this one in an unknown state."""
        self.forks.close()
        self.forks = Forks()
        self.prepare()

    @property
    def releases(self) -> Path:
        return self.shared / "releases"

    @property
    def data(self) -> Path:
        """The device's folder of the case at hand."""
        return self.own / "data"

    def order(self, order: Order, data: Path | None = None, **arguments: Any) -> Order:
        """An order for this bench's folder."""
        return dataclasses.replace(
            order,
            data=str(data or self.data),
            releases=str(self.releases),
            arguments={**order.arguments, **arguments},
        )

    def do(self, deed: str, data: Path | None = None, **arguments: Any) -> Done:
        """A deed that nobody disturbs."""
        return self.forks.run(self.order(Order(deed=deed), data, **arguments))

    # --- preparation ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the releases, and import in the fork server what is imported late."""
        # Imports what makes models, which takes seconds: not before it is known that there is work.
        from tests.torture.releases import Releases

        with (self.shared / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            releases = Releases(self.releases)
            for number in range(1, LAST + 2):
                releases.get(number)
        warm = self.own / "warm"
        shutil.rmtree(warm, ignore_errors=True)
        warm.mkdir()
        for deed, arguments in (
            ("carry_on", {"release": 1}),
            ("install_order", {"release": 2}),
            ("examine", {}),
            ("outbox_write", {"count": 4}),
            ("outbox_examine", {}),
        ):
            self.forks.warm_up(self.order(Order(deed=deed), warm, **arguments))
        shutil.rmtree(warm)

    def base(self, scenario: Scenario) -> Path:
        """The folder that the scenario begins with, made once."""
        folder = self.shared / "bases" / scenario.name
        with (self.shared / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                making = folder.with_name(f"{folder.name}.making")
                shutil.rmtree(making, ignore_errors=True)
                making.mkdir(parents=True)
                for order in scenario.base:
                    self.forks.run(self.order(order, making)).result  # noqa: B018 - raises
                making.rename(folder)
        return folder

    def fresh(self, scenario: Scenario) -> None:
        """The bench's folder is as the scenario begins."""
        reset(self.base(scenario), self.data)

    def copy_base(self, scenario: Scenario, target: Path) -> None:
        copy_tree(self.base(scenario), target)

    def count(self, scenario: Scenario) -> Counter[str]:
        """How often the scenario's deed does each system call; it is judged, too."""
        self.fresh(scenario)
        truth = self.truth(scenario)
        counts, done = count(self.forks, self.order(scenario.order))
        done.result  # noqa: B018 - raises
        faults = self.judge(scenario, truth, done)
        assert not faults, f"{scenario.name}, undisturbed: {faults}"
        return counts

    # --- judgement --------------------------------------------------------------------------------

    def truth(self, scenario: Scenario) -> Truth | None:
        """What holds before the deed."""
        if scenario.outbox:
            return None
        return Truth.of(self.do("look", self.base(scenario)).result, first=scenario.first)

    def judge(
        self, scenario: Scenario, truth: Truth | None, done: Done, before_ns: int | None = None
    ) -> list[str]:
        """Let the device come back and carry on."""
        if truth is None:
            found = self.do("outbox_examine", **scenario.after).end or {}
            if "stream" not in found:
                return [f"the outbox does not open: {found}"]
            return faults_of_outbox(done.notes, found, before_ns, rotten=scenario.rotten)
        truth.follow(done.notes, before_ns)
        if scenario.base or (self.data / "models").is_dir():
            found = self.do("examine").end or {}
            if "answers" not in found:
                return [f"the device does not come back: {found}"]
            faults = truth.faults(found)
        else:
            faults = []
        after = self.do("carry_on", release=scenario.following).end or {}
        if "answers" not in after:
            return [*faults, f"the next install fails: {after}"]
        return faults + faults_of_next(after, scenario.following)
