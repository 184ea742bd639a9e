"""The schema's history (Alembic). It is brought up to date at every start, in one transaction."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from skerry_contract.errors import ConfigError

from ..db import Database

_FOLDER = Path(__file__).parent


def upgrade(db: Database) -> None:
    """Bring the database up to this version's schema.

    Raises:
        ConfigError: it was written by a newer version of Skerry; nothing was changed.
        StorageError: it could not be written.
    """
    config = _config()
    with db.write() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigError(
                f"the database has a schema that this version does not know: {error}",
                hint="It was written by a newer version: start that one, or restore a backup.",
            ) from error


def revisions() -> list[str]:
    """Newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def _config() -> Config:
    config = Config()
    # A percent sign in the path would be read as an option's name.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
