"""Dagster resources: what assets and sensors are given to reach the outside."""

import dagster as dg
from pydantic import SecretStr

from babylon_rl.database.connect import Database, open_database
from babylon_rl.settings import get_settings


class DatabaseResource(dg.ConfigurableResource):
    """The database in use: `url`, or where that is empty the one that the settings name."""

    url: str = ""

    def open(self) -> Database:
        """The database, reached once; the embedded server is brought up. DatabaseError where that fails."""
        settings = get_settings()
        if self.url:
            settings = settings.model_copy(update={"database_url": SecretStr(self.url)})
        return open_database(settings)
