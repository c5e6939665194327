"""The commands `babylon-rl bench …` of serving, attestation and experiments: thin, as those of `commands`."""

import json
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from babylon_rl.bench.shown import PairsOption, show
from babylon_rl.console import (
    JsonOption,
    ModelOption,
    console,
    errors,
    forget_the_applications_variables,
    settings_for,
)

app = typer.Typer()


@app.command("experiments")
def bench_experiments(
    simulations: Annotated[int, typer.Option(min=100, help="Simulated experiments a row.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of all hours, arms and effects.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """How often experiments promote what is no better, and how often they find a planted effect in the time told.

    Takes some minutes on one core, and no database. Exit code 1: more false promotions than 5 %, or less than 80 %
    power at a forecast horizon.
    """
    from babylon_rl.bench.experiments import measure_experiments

    with errors.status("starting") as line:
        found = measure_experiments(seed, simulations, line.update)
    show(found, as_json)


@app.command("gateway")
def bench_gateway(
    rate: Annotated[float, typer.Option(min=1, help="Calls a second, at random times.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of a round, each way.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which each way is taken once.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the times of the calls.")] = 0,
    proxy: Annotated[bool, typer.Option(help="Also measure LiteLLM's proxy; it is installed on first use.")] = True,
    as_json: JsonOption = False,
) -> None:
    """What the gateway adds to its upstream's time on one core, recording on, beside LiteLLM's proxy.

    Takes some minutes. Exit code 1: over 3 ms (median) or 10 ms (99th percentile), not less than LiteLLM's proxy, or a
    call was not recorded.
    """
    from babylon_rl.bench.gateway import measure_gateway

    show(measure_gateway(settings_for(None).home, rate, seconds, rounds, seed, proxy, errors.print), as_json)


@app.command("gateway-faults")
def bench_gateway_faults(
    calls: Annotated[int, typer.Option(min=10, help="Calls through the gateway.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the kills and of what is streamed.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Kill gateway, shipper, upstream and PostgreSQL at random while calls go on; compare answers with rows.

    Exit code 1: a call is not there, there twice, or other than it was answered.
    """
    from babylon_rl.bench.gateway_faults import measure_gateway_faults

    show(measure_gateway_faults(calls, seed, errors.print), as_json)


@app.command("serving")
def bench_serving(
    pairs: PairsOption = 5,
    concurrent: Annotated[int, typer.Option(min=2, help="Calls at a time.")] = 32,
    alone: Annotated[int, typer.Option(min=1, help="Calls one at a time.")] = 8,
    seed: Annotated[int, typer.Option(help="Of windows, agents and answers.")] = 0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tokens a second of concurrent short calls of the local endpoint, against the same calls one at a time.

    Exit code 1: less than three times as many, of free text.
    """
    from babylon_rl.bench.serving import measure_serving
    from babylon_rl.loop import corpus
    from babylon_rl.training.base_models import prepare_base_model
    from babylon_rl.training.policy import use_threads

    settings = settings_for(None, model)
    base = prepare_base_model(settings.base_model, settings.home, 0, corpus())
    show(measure_serving(base, use_threads(settings.threads), concurrent, alone, pairs, seed, errors.print), as_json)


@app.command("attestation")
def bench_attestation(
    trials: Annotated[int, typer.Option(min=1, help="Trials with wrong weights, and as many with right ones.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the checkpoints and of the order of the trials.")] = 0,
    rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of the step by which a stale one is behind. \\[default: the recipes' least]"),
    ] = None,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Base model in bfloat16 instead of float32.")] = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether wrong weights behind a checkpoint's name are detected, and right ones let through. Exit code 1: no."""
    forget_the_applications_variables()
    from babylon_rl.bench.attestation import measure_attestation

    with errors.status("making checkpoints") as line:
        found = measure_attestation(
            settings_for(None, model),
            trials,
            seed,
            rate,
            "bfloat16" if bfloat16 else "float32",
            lambda said: line.update(escape(said[: errors.width - 4])),
        ).as_json()
    if as_json:
        print(json.dumps(found))
    else:
        table = Table(
            title=f"{found['base_model']}, {found['precision']}, seed {found['seed']}, rate {found['rate']:g}",
            box=SIMPLE,
            padding=0,
        )
        for name in ("what is served", "trials", "correct"):
            table.add_column(name, justify="left" if name == "what is served" else "right")
        for kind, count in found["trials"].items():
            table.add_row(kind, str(count), str(found["correct"].get(kind, 0)))
        console.print(table)
        console.print(
            f"Largest difference of right weights {found['worst_right'] or 0:.2g}, smallest of stale ones "
            f"{found['least_stale'] or 0:.2g}; equal is at most {found['tolerance']:g}. {found['seconds']:.2f} s each."
        )
        for said in found["missed"]:
            console.print(f"Wrong: {said}", soft_wrap=True, markup=False)
    raise typer.Exit(0 if found["reached"] else 1)
