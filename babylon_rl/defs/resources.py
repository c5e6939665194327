"""Dagster resources: what assets and sensors are given to reach the outside."""

import dagster as dg
from pydantic import PrivateAttr, SecretStr

from babylon_rl.database.connect import Database, open_database
from babylon_rl.settings import get_settings


class DatabaseResource(dg.ConfigurableResource):
    """The database in use: `url`, or where that is empty the one that the settings name."""

    url: str = ""
    _opened: Database | None = PrivateAttr(default=None)  # a run or a tick has a resource of its own

    def open(self) -> Database:
        """The database, reached once; the embedded server is brought up. DatabaseError where that fails."""
        if self._opened is None:
            settings = get_settings()
            if self.url:
                settings = settings.model_copy(update={"database_url": SecretStr(self.url), "application_url": None})
            self._opened = open_database(settings)
        return self._opened
