"""What the measurements share: a folder, the models, their bundles, how long to take."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from . import models
from .device import Device, Workshop
from .models import BenchModel

_MAKERS: Final = {"digits": models.digits, "conv": models.conv, "large": models.large}


@dataclass
class World:
    """Models and bundles are made when they are first asked for, and kept for the run."""

    folder: Path
    """On a disk, not on a tmpfs, which the kernel does not charge."""
    quick: bool
    torture: Path
    """The report of ``make torture``."""
    stack: ExitStack
    """Ends what was prepared, at the end of the run at the latest."""
    prepared: dict[str, Any] = field(default_factory=dict)
    """What a measure needs later, by its name: time passes for it while others are measured."""
    _workshop: Workshop | None = None
    _models: dict[str, BenchModel] = field(default_factory=dict)
    _bundles: dict[tuple[str, str], Path] = field(default_factory=dict)
    _devices: int = 0

    @property
    def workshop(self) -> Workshop:
        if self._workshop is None:
            self._workshop = Workshop(self.folder / "workshop")
        return self._workshop

    def model(self, name: str) -> BenchModel:
        if name not in self._models:
            self._models[name] = _MAKERS[name](self.workshop.folder)
        return self._models[name]

    def bundle(self, name: str, version: str = "1.0.0", *options: str, profile: str = "x86-gateway") -> Path:
        """Packed with those options, the first time. Raises `CommandError`."""
        if (name, version) not in self._bundles:
            self._bundles[name, version] = self.workshop.pack(
                self.model(name), version, *options, profile=profile
            )
        return self._bundles[name, version]

    def device(self, *bundles: Path, broker: int = 0, **changes: str) -> Device:
        """A fresh device with these bundles installed; its daemon does not run yet. Raises `CommandError`."""
        self._devices += 1
        device = Device(self.folder / f"d{self._devices}", self.workshop, broker=broker, changes=changes)
        for bundle in bundles:
            device.install(bundle)
        return device

    def pick(self, quick: int, full: int) -> int:
        """How often, by how much time there is."""
        return quick if self.quick else full
