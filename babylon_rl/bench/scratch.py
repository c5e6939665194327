"""A PostgreSQL server of a bench's own, thrown away afterwards: no bench measures or fills a user's database."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import APPLICATION_DATABASE, EmbeddedServer
from babylon_rl.database.migrate import migrate


@contextlib.contextmanager
def scratch_server() -> Iterator[tuple[EmbeddedServer, Database]]:
    """A started server in a temporary folder and its migrated database with the application's tables."""
    folder = Path(tempfile.mkdtemp(prefix="babylon_rl-bench-"))
    folder.chmod(0o711)  # the server's user may enter it where root runs the bench
    server = EmbeddedServer(folder / "server")
    try:
        server.up()
        database = Database(server.url(APPLICATION_DATABASE), embedded=True)
        migrate(database)
        yield server, database
        database.engine().dispose()
    finally:
        server.down()
        shutil.rmtree(folder)
