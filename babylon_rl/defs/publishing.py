"""What assets and jobs do to publish: nothing unless configured, and never a failure of what they made."""

from datetime import UTC, datetime
from logging import Logger

import dagster as dg

from babylon_rl.database.connect import Database
from babylon_rl.settings import get_settings
from babylon_rl.training.publishing import publish

Shown = dict[str, dg.MetadataValue]


def publish_finished(log: Logger, database: Database) -> Shown:
    """Tell the application of finished checkpoints, where it is configured; metadata that say how that went.

    Whatever goes wrong is a warning: the checkpoint is there, and the next update or `babylon-rl publish` tells of it.
    """
    url = get_settings().publish_url
    if not url or not url.get_secret_value():
        return {}
    try:
        done = publish(database, url.get_secret_value(), datetime.now(UTC))
    except Exception as error:
        log.warning(f"Not published. {error}")
        return {"published": dg.MetadataValue.int(0), "not published": dg.MetadataValue.text(str(error))}
    told = ", ".join(f"{change.key} ({change.status})" for change in done.changes) or "nothing changed"
    log.info(f"Published: {told}")
    return {"published": dg.MetadataValue.int(len(done.changes))}


def with_metadata(output: dg.Output, shown: Shown) -> dg.Output:
    """The output with these metadata beside its own."""
    return dg.Output(output.value, metadata={**output.metadata, **shown}, data_version=output.data_version)
