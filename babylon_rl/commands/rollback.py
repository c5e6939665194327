"""`babylon-rl rollback`: back to what was served before, decided by a person and booked with the reason."""

from typing import Annotated

import typer

from babylon_rl.commands.promote import WhoOption, WhyOption, decider, tell
from babylon_rl.console import DatabaseOption, JsonOption, settings_for


def rollback(
    why: WhyOption,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="ID", help="A checkpoint that was served earlier, or RUN@0, a run's base model."),
    ] = None,
    who: WhoOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Serve again what was served before the latest promotion: a running gateway follows within seconds.

    A second time goes one further back, in the end to the base model. What cannot be served any more is passed over
    and named. What is taken back stays on record with its evidence.
    """
    from babylon_rl.evaluation.promotion import roll_back
    from babylon_rl.loop import prepare
    from babylon_rl.training.retention import find_checkpoint

    settings = settings_for(database)
    opened = prepare(settings)
    with opened.connect() as connection:
        target = None if to is None else find_checkpoint(connection, to).checkpoint_id
        made = roll_back(connection, decider(who), why, target)
    tell(settings, opened, made, as_json)
