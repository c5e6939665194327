"""The report: one HTML file without scripts and without anything from elsewhere, and the same in short as Markdown."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from babylon_rl.reporting import charts
from babylon_rl.reporting.progress import PNL
from babylon_rl.reporting.state import State, judge_intervals

TEMPLATE = "report.html.j2"


def render(state: State) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"moment": moment, "signed": signed, "interval": interval, "percent": percent}
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    judged = judge_intervals(state.judge) if state.judge else []
    return template.render(state=state, unit=PNL, judged=judged, drawn=_drawn(state))


def write_report(state: State, target: Path) -> Path:
    """Write the page, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.part")
    half.write_text(render(state), encoding="utf-8")
    return half.replace(target)


def _drawn(state: State) -> dict[str, Any]:
    """The charts by name, as markup that is not escaped again; None where there is nothing to draw."""
    from markupsafe import Markup

    found: dict[str, str | None] = dict.fromkeys(("sequence", "evidence", "learning", "pnl", "judge"))
    if state.candidate and sum(look["effect"] is not None for look in state.candidate.looks) > 1:
        found["sequence"] = charts.sequence(state.candidate)
    if state.evidence:
        found["evidence"] = charts.forest(state.evidence, PNL)
    if state.rounds or state.validation:
        found["learning"] = charts.learning(state.rounds, state.validation)
    if len(state.pnl) > 1:
        found["pnl"] = charts.course(state.pnl, PNL, "first window of each block")
    if state.judge and (judged := judge_intervals(state.judge)):
        found["judge"] = charts.forest(judged, "rank correlation")
    return {name: None if svg is None else Markup(svg) for name, svg in found.items()}


def summary(state: State) -> str:
    """The report in a few lines of Markdown, for the asset's page."""
    lines = ["| | |", "|---|---|"]

    def add(name: str, said: object) -> None:
        text = str(said).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
        lines.append(f"| {name} | {text} |")

    served, candidate = state.served, state.candidate
    add(
        "served", f"{served.checkpoint} since {moment(served.since)}: {served.why}" if served else "nothing is promoted"
    )
    if candidate:
        add("experiment", f"{candidate.candidate} against {candidate.baseline}: {candidate.state}. {candidate.reason}")
    for one in state.evidence[:4]:
        add(one.label, f"{interval(one)}, {one.note}")
    if state.pnl:
        add(f"P&L, latest block of {state.pnl[-1].count} windows", interval(state.pnl[-1]))
    if state.judge:
        add("judge", f"{state.judge['verdict']}: {state.judge['reason']}")
    for row in state.rejects[:5]:
        add(f"rejected: {row['reason']}", f"{row['rows']} for {row['refused_for']}")
    for cost in state.costs:
        add(cost.what, f"{cost.count}; {cost.detail}" + (f"; ${cost.dollars:,.2f}" if cost.dollars is not None else ""))
    if state.gaps:
        add("calls without a record", state.gaps)
    return "\n".join(lines)


def moment(value: datetime) -> str:
    """A time as the page says it, in UTC to the minute."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def signed(value: float | None) -> str:
    """A figure with its sign, or a dash."""
    return "–" if value is None else f"{value:+.2f}"


def percent(value: float | None) -> str:
    """A share in whole per cent, or a dash."""
    return "–" if value is None else f"{value:.0%}"


def interval(one: Any) -> str:
    """A figure with its interval."""
    return f"{one.middle:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
