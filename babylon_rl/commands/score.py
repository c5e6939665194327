"""`babylon-rl score`: one window under a scorer, without writing its scores: who was best and worst, and why."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE, SIMPLE_HEAD
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, errors, judging_told, settings_for

if TYPE_CHECKING:
    from babylon_rl.scoring.compare_runs import ComparedRun, Comparison
    from babylon_rl.scoring.inspection import ScoredWindow

MOST_INSTRUMENTS = 12
# Columns of a terminal from which on more of a reward's parts stand beside it.
WIDE = 110
# What a judge gave, 0 to 1; columns where it gave any.
JUDGED = ("process_score", "hindsight_score")
# Characters of a prompt or an answer; what was cut out of the middle is counted.
LONGEST_TEXT = 900

ScorerOption = Annotated[str | None, typer.Option("--scorer", metavar="NAME", help="\\[default: BABYLON_RL_SCORER]")]


def score(
    window: Annotated[str, typer.Option("--window", metavar="WINDOW", help="The hour, as in 2025-01-15T10:00.")],
    scorer: ScorerOption = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Runs or agents to show side by side. \\[default: best and worst]"),
    ] = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Score a window and say who was best and worst and why; no score is written (a judge's answers are kept).

    Two decisions stand side by side: what each agent saw, answered and did, what the market then did, what it earned.
    """
    from babylon_rl.loop import prepare
    from babylon_rl.scoring.inspection import inspect_window
    from babylon_rl.windows import parse_window_id

    parse_window_id(window)
    settings = settings_for(database)
    opened = prepare(settings)
    with judging_told(), errors.status(f"scoring {window}"):
        found = inspect_window(opened, window, settings, scorer or settings.scorer, compare)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    _tell(found)


def _tell(found: "ScoredWindow") -> None:
    _line(f"{found.window_id} under scorer {found.scorer} {found.scorer_version}: {len(found.runs)} runs")
    _market(found)
    console.print(_runs_table(found.runs))
    if found.compared is None:
        _line("There are not two runs with a valid reward, so none are compared.")
    else:
        alike = len({run["reward"] for run in found.runs}) == 1
        if alike:
            _line("All rewards are equal: nothing can be learned from this window, and the ranks are by id.")
        for run in (found.compared.first, found.compared.second):
            known = {} if alike else {1: "Best", len(found.runs): "Worst"}
            place = known.get(run.rank, f"Rank {run.rank}")
            _line(f"{place + ':':<7} {one_line(run.agent_id)}, {one_line(run.reason)}")
        _line("")
        console.print(_side_by_side(found.compared))
    one = found.window_id
    _line("No score was written. To write them:")
    command = f"  babylon-rl rescore --from {one} --to {one} --scorer {found.scorer}"
    console.print(command, markup=False, highlight=False, soft_wrap=True)


def _line(text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _market(found: "ScoredWindow") -> None:
    from babylon_rl.scoring.compare_runs import move_of

    if not found.outcomes:
        _line("The market: no price and no resolution is known of this hour.")
        return
    where = "as materialized" if found.outcomes_stored else "read now, for this window was not materialized"
    _line(f"The market ({where}):")
    shown = found.outcomes[:MOST_INSTRUMENTS]
    width = max(len(one_line(row["instrument"])) for row in shown)
    for row in shown:
        _line(f"  {one_line(row['instrument']):<{width}}  {move_of(row)}")
    if len(found.outcomes) > len(shown):
        _line(f"  and {len(found.outcomes) - len(shown)} more instruments")


def main_parts(runs: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """Names of the parts that differ between the runs, in the scorer's order: the others say nothing of a rank."""
    names = list(dict.fromkeys(name for run in runs for name in run["parts"]))
    return [name for name in names if len({run["parts"].get(name) for run in runs}) > 1][:most]


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    judged = [name for name in JUDGED if any(run[name] is not None for run in runs)]
    room = 4 if console.width >= WIDE else 1 - len(judged)
    # A judge's scores are its parts as well.
    parts = [name for name in main_parts(runs, 99) if f"{name}_score" not in judged][: max(0, room)]
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("agent", overflow="fold", max_width=24)
    for name in ("P&L $", "reward", *(name.replace("_", " ") for name in (*judged, *parts)), "dec."):
        table.add_column(name, justify="right", max_width=10)
    table.add_column("reason", overflow="fold", min_width=20)
    for run in runs:
        table.add_row(
            str(run["rank"]),
            _text(run["agent_id"]),
            f"{run['features']['window_pnl']:+.2f}",
            f"{run['reward']:+.5f}",
            *("-" if run[name] is None else f"{run[name]:.2f}" for name in judged),
            *(_figure(run["parts"].get(part)) for part in parts),
            str(run["features"]["steps"]),
            _text(_reason(run)),
        )
    return table


def _reason(run: Mapping[str, Any]) -> str:
    """Why the run has its reward, and what in its text looks as if it spoke to a judge."""
    signs = ", ".join(map(str, run["injection_signs"] or ()))
    return f"{run['reason']}; signs of injection: {signs}" if signs else run["reason"]


def _side_by_side(compared: "Comparison") -> Table:
    runs = (compared.first, compared.second)
    about = f"on {one_line(compared.first.instrument)}" if compared.same_instrument else "on what each of them traded"
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_text(f"Two decisions {about}"), title_justify="left", expand=True
    )
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(_text(f"{run.rank}. {run.agent_id}"), ratio=1, overflow="fold")
    for name, told in _side_rows():
        cells = [told(run) for run in runs]
        if any(cells):
            table.add_row(name, *map(_text, cells), end_section=name in ("saw", "answered"))
    return table


def _side_rows() -> Iterable[tuple[str, Any]]:
    """Names of the lines of a side-by-side, and what each says of a run."""
    from babylon_rl.scoring.compare_runs import not_done

    def of_decision(tell: Any) -> Any:
        return lambda run: "" if run.decision is None else tell(run.decision)

    return (
        ("saw", of_decision(lambda one: cut(one.saw) or "its prompt is not recorded")),
        ("answered", of_decision(lambda one: cut(one.answered) or "its answer is not recorded")),
        ("did", of_decision(_did)),
        ("market", lambda run: run.market),
        ("decision", of_decision(lambda one: "" if one.reward is None else f"reward {one.reward:+.5f}")),
        ("run", _earned),
        ("not done", lambda run: not_done(run.counterfactuals)),
    )


def _did(decision: Any) -> str:
    if not decision.dollars:
        return decision.did
    return f"{decision.did}, ${abs(decision.dollars):,.2f}, fees ${decision.fees:,.2f}"


def _earned(run: "ComparedRun") -> str:
    several = f" in {run.decisions} decisions" if run.decisions > 1 else ""
    return f"{'-' if run.pnl < 0 else '+'}${abs(run.pnl):,.2f}{several}, reward {run.reward:+.5f}"


def _figure(value: Any) -> str:
    # Adding zero takes the sign off a rounded nothing.
    return f"{round(value, 4) + 0.0:+.4f}" if isinstance(value, int | float) else "-"


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text with its middle taken out where it is long: a prompt's end asks what its beginning explains."""
    text = text.strip()
    if len(text) <= longest:
        return text
    head, tail = text[: longest * 2 // 3], text[-(longest // 3) :]
    return f"{head.rstrip()}\n[… {len(text) - len(head) - len(tail):,} characters …]\n{tail.lstrip()}"


def _text(text: Any) -> Any:
    """What agents wrote, as a terminal may be given it: no markup, no control characters but line ends."""
    from rich.text import Text

    return Text("".join(mark if mark.isprintable() or mark == "\n" else " " for mark in str(text)))


def one_line(text: Any) -> str:
    """What agents wrote, on one line without control characters."""
    return " ".join(_text(text).plain.split())
