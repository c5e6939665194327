"""The commands `babylon-rl bench …`: thin; each calls one function and prints what it gave."""

import json
import signal
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from babylon_rl.console import (
    DatabaseOption,
    JsonOption,
    ModelOption,
    console,
    errors,
    forget_the_applications_variables,
    settings_for,
)

app = typer.Typer(
    help="Measurements: a recipe over seeds, rewards, experiments, a judge's guard, Dagster's overhead, the sensor's "
    "tick, reading, writing, snapshots, faults, submissions of training jobs, the trainer, the gateway.",
    no_args_is_help=True,
)
PairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Rounds in which each way is taken once.")]


@app.command("learning")
def bench_learning(
    seeds: Annotated[str, typer.Option(metavar="SEEDS", help="Seeds to measure: 11-20, or 1,5,7, or both mixed.")],
    model: ModelOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results, table, plot and logs; by default BABYLON_RL_HOME/bench.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Also write data, document and plot of these seeds into the repository.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the demo's recipe over seeds, one demo each: a table and a plot of what each seed and all of them came to.

    A seed takes as long as a demo. Ctrl-C keeps what is finished; the same command goes on from there, and runs seeds
    that failed again. Exit code 1: a seed failed.
    """
    forget_the_applications_variables()
    _end_like_ctrl_c()
    from babylon_rl.bench.learning import measure_learning
    from babylon_rl.bench.report import result_line, table
    from babylon_rl.bench.results import parse_seeds
    from babylon_rl.plans import plan_of

    settings, wanted = settings_for(database, model), parse_seeds(seeds)
    said = errors if as_json else console
    folder = (out or settings.home / "bench").absolute()
    said.print(f"{settings.base_model}, {len(wanted)} seeds, a demo each; logs in {folder}", soft_wrap=True)
    with said.status("starting") as line:
        measured = measure_learning(
            settings,
            plan_of(settings.base_model),
            wanted,
            folder,
            publish,
            lambda seed, last: line.update(escape(f"seed {seed}: {last}"[: said.width - 4])),
            lambda result: said.print(result_line(result), soft_wrap=True, markup=False),
        )
    if as_json:
        print(json.dumps(measured.as_json()))
    else:
        print(f"\n{table(measured.results)}")
        console.print("\n".join(map(str, measured.files)), soft_wrap=True, markup=False)
    raise typer.Exit(1 if measured.failed else 0)


@app.command("overhead")
def bench_overhead(
    windows: Annotated[int, typer.Option(min=2, help="Windows a range.")] = 100,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """What Dagster adds to the domain functions: seconds of the five data assets. Exit code 1: over the limit."""
    forget_the_applications_variables()
    from babylon_rl.bench.overhead import measure_overhead

    found = measure_overhead(settings_for(None), windows, pairs, errors.print)
    if as_json:
        print(json.dumps([each.as_json() for each in found]))
    else:
        console.print(_overhead_table(found))
    raise typer.Exit(0 if all(each.reached for each in found) else 1)


def _overhead_table(found: list[Any]) -> Table:
    table = Table(title="Seconds, medians over pairs of equal windows", box=SIMPLE, padding=0)
    for name in ("windows", "checks", "domain functions", "Dagster run", "added by Dagster", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in (pair.as_json() for pair in found):
        cells = ("" if each[name] is None else f"{each[name]:.2f}" for name in ("own", "run", "added", "limit"))
        table.add_row(str(each["windows"]), "with" if each["checks"] else "without", *cells)
    return table


@app.command("sensor")
def bench_sensor(
    windows: Annotated[int, typer.Option(min=10, help="Hours that hold trajectories.")] = 50_000,
    rows: Annotated[int, typer.Option(min=10, help="Small trajectories in them.")] = 1_000_000,
    without_ids: Annotated[
        bool, typer.Option("--without-ids", help="Rows without a windowId, as another recorder writes them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What a tick of the readiness sensor costs on a large table, on a server of its own.

    Takes some minutes and a few gigabytes of disk, which are freed. Exit code 1: the figure is missed.
    """
    from babylon_rl.bench.sensor import as_json as figures_as_json
    from babylon_rl.bench.sensor import measure_sensor, table

    figures = measure_sensor(windows, rows, not without_ids, lambda line: errors.print(line))
    print(json.dumps(figures_as_json(figures)) if as_json else table(figures))
    raise typer.Exit(0 if figures.reached else 1)


@app.command("reading")
def bench_reading(
    rows: Annotated[int, typer.Option(min=10, help="Recorded rows of 20 steps and about 25 kB.")] = 3_000,
    windows: Annotated[int, typer.Option(min=2, help="Windows that they are in.")] = 12,
    pairs: PairsOption = 7,
    as_json: JsonOption = False,
) -> None:
    """From recorded rows to written scores, against the first system's way and a server's COPY of the same rows."""
    from babylon_rl.bench.reading import measure_reading

    _show(measure_reading(rows, windows, pairs, errors.print), as_json)


@app.command("workers")
def bench_workers(
    rows: Annotated[int, typer.Option(min=10, help="Recorded rows of 20 steps and about 25 kB.")] = 12_000,
    windows: Annotated[int, typer.Option(min=8, help="Windows that they are in.")] = 48,
    pairs: PairsOption = 7,
    as_json: JsonOption = False,
) -> None:
    """From recorded rows to written scores with one process and with two; the server takes its part of the cores."""
    from babylon_rl.bench.reading import measure_workers

    _show(measure_workers(rows, windows, pairs, errors.print), as_json)


@app.command("writing")
def bench_writing(
    rows: Annotated[int, typer.Option(min=10, help="Rows of scored_trajectories, about a kilobyte each.")] = 24_000,
    windows: Annotated[int, typer.Option(min=1, help="Windows that they are in.")] = 24,
    pairs: PairsOption = 7,
    as_json: JsonOption = False,
) -> None:
    """The write of an asset's rows, against psql's copy of the same rows."""
    from babylon_rl.bench.writing import measure_writing

    _show(measure_writing(rows, windows, pairs, errors.print), as_json)


@app.command("memory")
def bench_memory(
    share: Annotated[float, typer.Option(min=0.0001, max=1, help="Share of the rows and windows.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Peak memory over a million small rows, fifty thousand large ones and one window of ten thousand.

    Takes many minutes and some gigabytes of disk, which are freed. Exit code 1: over a limit.
    """
    from babylon_rl.bench.memory import cases, measure_memory, table

    found = measure_memory(cases(share), errors.print)
    print(json.dumps([each.as_json() for each in found]) if as_json else table(found))
    raise typer.Exit(0 if all(each.reached for each in found) else 1)


@app.command("scoring")
def bench_scoring(
    trajectories: Annotated[int, typer.Option(min=8, help="Decoded trajectories of each kind.")] = 8_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over them.")] = 7,
    seed: Annotated[int, typer.Option(help="Of the made trajectories.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Trajectories a second that one core scores, without a database. Exit code 1: short runs are below the figure."""
    from babylon_rl.bench.scoring import measure_scoring

    _show(measure_scoring(trajectories, rounds, seed, errors.print), as_json)


@app.command("listing")
def bench_listing(
    windows: Annotated[int, typer.Option(min=10, help="Materialized windows.")] = 2_000,
    rejected: Annotated[int, typer.Option(min=10, help="Rejected rows in them.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="Listings.")] = 21,
    as_json: JsonOption = False,
) -> None:
    """What it takes to list the ready windows. Exit code 1: over the limit."""
    from babylon_rl.bench.listing import measure_listing

    _show(measure_listing(windows, rejected, rounds, errors.print), as_json)


@app.command("rewards")
def bench_rewards(
    seed: Annotated[int, typer.Option(help="Of personas, markets and luck.")] = 0,
    draws: Annotated[int, typer.Option(min=2, help="Draws of eight personas a climate, 168 hours each.")] = 100,
    lives: Annotated[int, typer.Option(min=2, help="Lives of the fixed policies, 24 hours each.")] = 300,
    out: Annotated[
        Path | None, typer.Option(help="Folder of figures and tables; by default BABYLON_RL_HOME/bench.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How often scorers rank a planted edge right in the simulated market, and what they pay fixed policies.

    Takes some minutes on one core, and no database. Exit code 1: alpha is not ahead where it was to be.
    """
    from babylon_rl.bench.results import write_whole
    from babylon_rl.bench.rewards import measure_rewards, tables

    with errors.status("starting") as line:
        found = measure_rewards(seed, draws, lives, line.update)
    folder, figures = (out or settings_for(None).home / "bench").absolute(), json.dumps(found.as_json(), indent=1)
    write_whole(folder / f"rewards-{seed}.json", figures.encode())
    write_whole(folder / f"rewards-{seed}.md", tables(found).encode())
    print(figures if as_json else tables(found))
    raise typer.Exit(0 if found.reached else 1)


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
    _show(found, as_json)


@app.command("snapshots")
def bench_snapshots(
    trajectories: Annotated[int, typer.Option(min=80, help="Trajectories of the larger snapshot.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the made groups.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of a snapshot, and of one of a tenth of the size. Exit code 1: over a limit.

    Takes some minutes and two gigabytes of disk, which are freed.
    """
    from babylon_rl.bench.snapshots import measure_snapshots

    _show(measure_snapshots([trajectories // 10, trajectories], seed, errors.print), as_json)


@app.command("faults")
def bench_faults(
    points: Annotated[int, typer.Option(min=1, help="Writes that are killed.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Of the points at which they are.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Kill the write of a partition at random points. Exit code 1: one left anything but the old or the new rows."""
    from babylon_rl.bench.faults import measure_faults

    _show(measure_faults(points, seed, errors.print), as_json)


@app.command("submissions")
def bench_submissions(
    jobs: Annotated[int, typer.Option(min=10, help="Training jobs.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the faults and of the kills.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Submit jobs to a training service on loopback at which everything goes wrong, by workers that are killed.

    Takes a quarter of an hour. Exit code 1: a job was accepted twice or lost, or ledger and service disagree.
    """
    forget_the_applications_variables()
    from babylon_rl.bench.submissions import measure_submissions

    _show(measure_submissions(jobs, seed, errors.print), as_json)


@app.command("injection")
def bench_injection(
    windows: Annotated[int, typer.Option(min=1, help="Windows that the attacks are spread over.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the windows.")] = 0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """What attempts to sway its judge do to the local model, with and without the guard.

    Takes some minutes. Exit code 1: one of them raised its run's score past the whole guard.
    """
    from babylon_rl.bench.injection import measure_injection
    from babylon_rl.loop import corpus
    from babylon_rl.training.base_models import prepare_base_model
    from babylon_rl.training.policy import use_threads

    settings = settings_for(None, model)
    use_threads(settings.threads)
    base = prepare_base_model(settings.base_model, settings.home, 0, corpus())
    _show(measure_injection(base, windows, seed, errors.print), as_json)


@app.command("trainer-memory")
def bench_trainer_memory(
    windows: Annotated[str, typer.Option(help="Numbers of windows, an update each.")] = "50,500",
    agents: Annotated[int, typer.Option(min=3, help="Agents a window.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the windows and the model.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Peak memory of an update of the tiny model by the number of groups. Exit code 1: it is not flat."""
    forget_the_applications_variables()
    from babylon_rl.bench.trainer_memory import measure_trainer_memory
    from babylon_rl.loop import corpus
    from babylon_rl.training.base_models import TINY, prepare_base_model

    settings = settings_for(None)
    base = prepare_base_model(TINY, settings.home, seed, corpus())
    _show(measure_trainer_memory(base, [int(one) for one in windows.split(",")], agents, seed, errors.print), as_json)


@app.command("trainer")
def bench_trainer(
    pairs: PairsOption = 5,
    seed: Annotated[int, typer.Option(help="Of groups and adapter.")] = 0,
    model: ModelOption = None,
    layers: Annotated[int, typer.Option(min=1, help="Last layers that have LoRA.")] = 12,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto, of the base model's weights.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu: against TRL; cuda: against a plain loop.")] = "cpu",
    model_shape: Annotated[
        str | None, typer.Option(help="0.5b, 1.5b or test: random weights, against a plain loop of transformers.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Useful tokens a second of a loss step, against TRL's on the same model and tokens; TRL is installed on first use.

    With `--model-shape` also the utilisation of the device's arithmetic. Exit code 1: less than 1.5 times TRL's, or
    the gradients differ.
    """
    from babylon_rl.bench.trainer import measure_trainer
    from babylon_rl.bench.utilisation import measure_utilisation
    from babylon_rl.loop import corpus
    from babylon_rl.training.base_models import prepare_base_model
    from babylon_rl.training.policy import precision_of, resolve_device, use_threads

    settings = settings_for(None, model)
    threads = use_threads(settings.threads)
    there = resolve_device(device)
    numbers = precision_of(precision, there)
    if model_shape is not None or there != "cpu":
        _show(measure_utilisation(model_shape or "0.5b", there, numbers, layers, pairs, seed, errors.print), as_json)
    base = prepare_base_model(settings.base_model, settings.home, 0, corpus())
    _show(measure_trainer(base, settings.home, threads, pairs, seed, numbers, layers, errors.print), as_json)


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

    _show(measure_gateway(settings_for(None).home, rate, seconds, rounds, seed, proxy, errors.print), as_json)


def _show(found: Any, as_json: bool) -> NoReturn:
    """Print the figures; exit code 1 where a limit is missed."""
    print(json.dumps(found.as_json()) if as_json else found.table())
    raise typer.Exit(0 if found.reached else 1)


def _end_like_ctrl_c() -> None:
    """A closed terminal or a plain kill ends as Ctrl-C does, so that no demo goes on without its bench."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
