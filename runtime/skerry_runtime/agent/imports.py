"""Bundle files that a person gives to the running daemon: verified like any other, one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable

from skerry_contract.errors import ConflictError, SkerryError

from . import trust, trust_process
from .context import Context
from .models import Models

Then = Callable[[dict[str, str]], None]
Failed = Callable[[SkerryError], None]


class Imports:
    """Used in the loop's thread; the verification runs in the background."""

    def __init__(self, models: Models, context: Context) -> None:
        self._models = models
        self._c = context
        self.busy = False
        """A file is being verified: what it brings into the store belongs to no generation yet."""

    def begin(self, descriptor: int, then: Then, failed: Failed) -> None:
        """Verify an open bundle file and begin its install; takes the descriptor over.

        ``then`` gets name, version, digest, variant, reason and transaction.
        """

        def over() -> None:
            os.close(descriptor)
            self.busy = False

        def verified(answer: trust.BundleAnswer) -> None:
            over()
            try:
                transaction = self._models.get(answer.name).install(answer)
            except SkerryError as error:
                failed(error)
                return
            then(
                {
                    "name": answer.name,
                    "version": answer.version,
                    "digest": answer.manifest,
                    "variant": answer.variant,
                    "reason": answer.reason,
                    "transaction": transaction,
                }
            )

        def refused(error: SkerryError) -> None:
            over()
            self._c.journal.event("update.refused", "a bundle file was refused", error=error)
            failed(error)

        if self.busy:
            os.close(descriptor)
            failed(ConflictError("another bundle file is being imported", hint="Wait until it is finished."))
            return
        self.busy = True
        request = trust.ImportFile(
            fd=descriptor,
            store=str(self._c.store.folder),
            engineers=self._c.config.trust.engineers,
            floors={model.name: model.floor for model in self._models},
            device=self._c.device,
            ram_taken=self._c.room.taken(),
        )
        self._c.jobs.submit(lambda _: trust_process.import_file(request), verified, refused)
