"""`babylon-rl serve`: the gateway that agents call, with all that stands behind it."""

import contextlib
import json
from typing import Annotated, Any

import typer

from babylon_rl.console import DatabaseOption, JsonOption, ModelOption, console, errors, settings_for


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 8100,
    checkpoint: Annotated[
        str, typer.Option(help="promoted follows promotions and experiments; base or an id serves that, whatever was.")
    ] = "promoted",
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Calls need no key: for whoever is on this machine.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell what is served and what went wrong; start nothing.")
    ] = False,
    model: ModelOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve agents on one OpenAI-compatible address, on loopback, until Ctrl-C; records each call.

    Follows promotions, rollbacks and experiments within seconds; a checkpoint whose log-probabilities are not those of
    its trainer is refused, and the one before it goes on answering. Agents change their base URL and their key.
    """
    from babylon_rl.loop import prepare
    from babylon_rl.training.checkpoint_store import refuse_deleted
    from babylon_rl.training.runs import load_checkpoint

    settings = settings_for(database, model)
    opened = prepare(settings)
    if status:
        from babylon_rl.serving.status import serving_status

        with opened.connect() as connection:
            _tell_status(serving_status(connection, settings.home), as_json)
        return
    fixed = None if checkpoint == "promoted" else checkpoint
    if fixed not in (None, "base"):
        with opened.connect() as connection:
            refuse_deleted(load_checkpoint(connection, fixed))  # a wrong name is said at once
    _serve(settings, opened, port, fixed, open_to_all, as_json)


def _serve(settings: Any, opened: Any, port: int, fixed: str | None, open_to_all: bool, as_json: bool) -> None:
    from babylon_rl.loop import corpus
    from babylon_rl.serving.supervision import Options, serve, upstream_told
    from babylon_rl.training.base_models import prepare_base_model

    told = errors if as_json else console

    def say(line: str) -> None:
        told.print(line, soft_wrap=True, markup=False, highlight=False)

    if fixed is not None:
        say(f"ATTENTION: {fixed} is served whatever was promoted, and no experiment takes place.")
    if open_to_all:
        say("ATTENTION: open. Whoever can reach this machine's loopback may call, and name the checkpoint.")
    say(upstream_told(settings))
    with contextlib.ExitStack() as stack:
        if told.is_terminal:
            waiting = stack.enter_context(told.status("The model is loaded and attested …"))
        for serving in serve(
            opened,
            settings,
            Options(port, fixed, open_to_all),
            lambda name, seed: prepare_base_model(name, settings.home, seed, corpus()),
            say,
        ):
            if told.is_terminal:
                waiting.stop()
            _tell_start(serving, open_to_all, as_json)


def _tell_start(serving: Any, open_to_all: bool, as_json: bool) -> None:
    """Address, what answers, and how an agent calls it."""
    routes = serving.deployer.routes
    standing = routes.promoted or routes.base
    experiment = routes.experiment
    if as_json:
        print(
            json.dumps(
                {
                    "base_url": serving.base_url,
                    "served": standing.checkpoint_id,
                    "candidate": routes.candidate.checkpoint_id if routes.candidate else None,
                    "experiment": experiment.experiment_id if experiment else None,
                    "spool": str(serving.folder),
                    "key": serving.first_key,
                    "open": open_to_all,
                }
            ),
            flush=True,
        )
        return
    console.print(f"Serving {standing.checkpoint_id} at {serving.base_url}; Ctrl-C ends it.", soft_wrap=True)
    if routes.candidate is not None and experiment is not None:
        console.print(
            f"Experiment {experiment.experiment_id}: {routes.candidate.checkpoint_id} answers {experiment.share:.0%} "
            f"({experiment.design}).",
            soft_wrap=True,
        )
    if serving.first_key is not None:
        console.print(f"Key (shown only now): {serving.first_key}", soft_wrap=True, highlight=False)
    key = "any text" if open_to_all else "a key of `babylon-rl keys create`"
    console.print(
        f"Agents: OPENAI_BASE_URL={serving.base_url}, OPENAI_API_KEY={key}, model babylon. "
        f"Calls are spooled in {serving.folder} and written to PostgreSQL from there.",
        soft_wrap=True,
    )


def _tell_status(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    gateway = found["gateway"]
    if gateway is None:
        console.print("No gateway of this home folder answers.")
    else:
        reason = f": {gateway['reason']}" if gateway.get("reason") else ""
        console.print(f"Gateway: {gateway['address']}, {gateway['status']}{reason}", soft_wrap=True, markup=False)
    for role, row in found["served"].items():
        attested = row["attestation"] or "not attested"
        console.print(f"{role}: {row['checkpoint']} ({attested}) since {row['at']}", soft_wrap=True, markup=False)
    for row in found["refused"]:
        console.print(f"Refused as {row['role']}: {row['checkpoint']}. {row['reason']}", soft_wrap=True, markup=False)
    gaps, spool = found["gaps"], found["spool"]
    console.print(f"Calls without a record: {gaps['calls']} in {gaps['gaps']} gaps.")
    failing = f" PostgreSQL does not take them: {spool['error']}" if spool["error"] else ""
    console.print(
        f"Waiting in the spool {spool['folder']}: {spool['waiting_bytes']} bytes; {spool['refused']} records put aside."
        + failing,
        soft_wrap=True,
        markup=False,
    )
