"""The models of this device by name, and which of them has the configured addresses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from skerry_contract.errors import InputError, NotFoundError, StorageError
from skerry_contract.manifest import NAME

from .files import write_durably
from .listeners import Listeners
from .log import get_logger
from .model import Model
from .room import Taken
from .slots import installed_models

_log = get_logger("models")


class Models:
    """Used in the loop's thread only."""

    def __init__(
        self, folder: Path, front_file: Path, listeners: Listeners, make: Callable[[str, Path], Model]
    ) -> None:
        """``make`` gives the model of a name and a folder."""
        self._folder = folder
        self._front_file = front_file
        self._front = _read_line(front_file)
        self._listeners = listeners
        self._make = make
        self._models: dict[str, Model] = {}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def start(self) -> None:
        """Those that were installed before: who is needed most has the first choice of the memory."""
        for name, folder in installed_models(self._folder).items():
            with self._going_on_without(name):
                self._models[name] = self._make(name, folder)
        for model in self._most_needed_first():
            with self._going_on_without(model.name):
                model.start()

    def start_waiting(self) -> None:
        """Those for which there was not enough memory, if there is now."""
        for model in self._most_needed_first():
            model.start_if_room()

    def taken(self) -> dict[str, Taken]:
        """What each model that answers, or is about to, takes of the memory."""
        return {model.name: taken for model in self if (taken := model.taken) is not None}

    def _most_needed_first(self) -> list[Model]:
        """The one with the configured addresses, then the one that was asked last."""
        return sorted(self, key=lambda model: (model.name != self._front, -model.used_ms, model.name))

    @contextlib.contextmanager
    def _going_on_without(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            _log.error("a model cannot be started; the others go on", extra={"model": name, "error": error})

    def get(self, name: str) -> Model:
        """A model that is made if it is new here. Raises `InputError` if that is no name of a model."""
        if name not in self._models:
            # It becomes the name of a folder.
            if not re.fullmatch(NAME, name):
                raise InputError(f"{name[:80]!r} is not a model's name")
            self._add(name, self._folder / name)
        return self._models[name]

    def find(self, name: str) -> Model:
        """A model that is here; without a name there must be one alone. Raises `NotFoundError`."""
        if name in self._models:
            return self._models[name]
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        known = ", ".join(sorted(self._models)) or "none"
        raise NotFoundError(
            f"there is no model {name!r}" if name else "which model?", hint=f"Installed here: {known}."
        )

    def transaction(self, name: str) -> str:
        """Of the update that a model is in, or nothing. Any thread."""
        model = self._models.get(name)
        return model.transaction if model is not None else ""

    @property
    def settled(self) -> bool:
        """No update is going on."""
        return all(model.settled for model in self)

    # --- addresses --------------------------------------------------------------------------------

    def open_sockets(self, name: str) -> list[tuple[str, int]]:
        """Listen for a model. The first that ever answers has the configured addresses; others their own."""
        if not self._front:
            self._front = name
            try:
                write_durably(self._front_file, name.encode())
            except StorageError as error:
                _log.warning("the front model cannot be stored", extra={"error": error})
        return list(self._listeners.open(name, front=name == self._front))

    def fall_silent(self, name: str) -> None:
        """Nothing answers for it any more: refuse its clients."""
        try:
            self._listeners.refuse(name, front=name == self._front)
        except StorageError as error:
            _log.error("the address could not be taken again", extra={"model": name, "error": error})

    def socket_path(self, name: str) -> Path:
        return self._listeners.socket_path(name, name == self._front)

    def _add(self, name: str, folder: Path) -> None:
        self._models[name] = self._make(name, folder)
        self._models[name].start()


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
