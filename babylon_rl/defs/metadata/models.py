"""What a person sees of one hour of a model asset: the update that ended there, or the evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg

from babylon_rl.database.connect import Database
from babylon_rl.defs.metadata.data import NO_ROW
from babylon_rl.defs.metadata.plots import curves, intervals
from babylon_rl.defs.metadata.stages import link, this_window
from babylon_rl.defs.metadata.tables import Rows, cell, counted, differing, dollars, figures, table
from babylon_rl.defs.metadata.windows import Describe
from babylon_rl.training.ancestry import Ancestor, chain, members_by_window

STEP = ("loss", "entropy", "ratio", "grad_norm")  # of an optimizer step; others follow as the trainer reports them
ALARM = ("window_id", "kind", "value", "limit_value", "detail", "response", "back_to", "exploration")
COMPARISON = ("baseline", "effect", "low", "high", "candidate_pnl", "baseline_pnl", "decision")


MOST_WINDOWS = 6  # of a snapshot, with a link each: so many stand inline


class MadeOf(NamedTuple):
    """What an update's checkpoint was made of: itself and its parent, and its members by window and label."""

    own: Ancestor
    parent: Ancestor | None
    windows: Mapping[str, Mapping[str, int]]


def checkpoints_described(database: Database) -> Describe:
    """`checkpoints_metadata` with what the database knows of the updates' checkpoints."""

    def describe(window_id: str, rows: Rows) -> Mapping[str, Any]:
        made_of = None
        if rows and rows[0]["updated"]:
            with database.connect() as connection:
                line = chain(connection, rows[0]["checkpoint_id"], most=2)
                if line and line[0].snapshot_id is not None:
                    windows = members_by_window(connection, line[0].snapshot_id)
                    made_of = MadeOf(line[0], line[1] if len(line) > 1 else None, windows)
        return checkpoints_metadata(window_id, rows, made_of)

    return describe


def checkpoints_metadata(window_id: str, rows: Rows, made_of: MadeOf | None = None) -> Mapping[str, Any]:
    """The state after the hour; of an update its parent, snapshot, curves, and what its batch looked like."""
    if not rows:
        return dict(NO_ROW)
    row = rows[0]
    metrics = row["metrics"] or {}
    found: dict[str, Any] = {
        "status": "updated" if row["updated"] else "no update",
        "reason": cell(row["reason"]),
        "checkpoint": row["checkpoint_id"] or "none",
    }
    if row["parent_id"]:
        found["parent"] = row["parent_id"]
    if row["updated"]:
        found |= {"snapshot": row["snapshot_id"][:12], **_trained_on(row.get("group_digests"))}
    if "alarms" in metrics:
        found["alarms"] = alarms_table(metrics["alarms"])
    found |= _steps(metrics.get("steps") or [])
    if made_of is not None:
        found |= _lineage(made_of)
    return {
        **found,
        **figures({"step": row["step"], "groups trained": row["groups_trained"]}),
        **figures({"groups left out": row["groups_left_out"]}),
        **figures({f"{name} (mean)": value for name, value in (metrics.get("mean") or {}).items() if name in STEP}),
        **_health(metrics.get("health")),
        **this_window("trained_checkpoints", window_id),
    }


def _trained_on(digests: Mapping[str, str] | None) -> dict[str, Any]:
    """Links to the groups of the update's first and last windows."""
    if not digests:
        return {}
    first, last = min(digests), max(digests)
    windows = f"{len(digests)} windows, {link('art_groups', first, first)} to {link('art_groups', last, last)}"
    return {"trained on": dg.MetadataValue.md(windows)}


def _lineage(made_of: MadeOf) -> dict[str, Any]:
    """Where the checkpoint comes from, with links, and where it is."""
    own, parent = made_of.own, made_of.parent
    members = ", ".join(f"{one.members} {one.label} ({one.loss})" for one in own.members)
    known = {
        "backend": own.backend,
        "job": own.job_id and own.job_id[:12],
        "members by label": members,
        "weights": own.weights_sha256 and own.weights_sha256[:12],
        "base model": " ".join(filter(None, (own.base_model, (own.base_sha256 or "")[:12]))),
        "tokenizer": own.tokenizer_sha256 and own.tokenizer_sha256[:12],
        "code": own.code_version,
        "kept in": own.path,
        "served as": own.inference_name and f"{own.inference_name} at {own.inference_url}",
    }
    found: dict[str, Any] = {"snapshot": own.snapshot_id}
    if parent is not None and parent.last_window is not None:
        text = link("trained_checkpoints", parent.last_window, parent.checkpoint_id)
        found["parent"] = dg.MetadataValue.md(text)
    found["made of"] = dg.MetadataValue.md(_windows_table(own.checkpoint_id, made_of.windows))
    return found | {name: cell(value) for name, value in known.items() if value}


def _windows_table(checkpoint_id: str, windows: Mapping[str, Mapping[str, int]]) -> str:
    """A Markdown table of the first windows with a link each, and the command that tells all."""
    lines = ["| window | members | by label |", "|---|---|---|"]
    for window in sorted(windows)[:MOST_WINDOWS]:
        labels = windows[window]
        said = ", ".join(f"{count} {label}" for label, count in labels.items())
        lines.append(f"| {link('art_groups', window, window)} | {sum(labels.values())} | {said} |")
    more = f"{len(windows) - MOST_WINDOWS} more windows; all: " if len(windows) > MOST_WINDOWS else ""
    return "\n".join([*lines, "", f"{more}`babylon-rl lineage {checkpoint_id} --trajectories`"])


def _steps(steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The curves of an update's optimizer steps, and the steps themselves."""
    if not steps:
        return {}
    names = [name for name in STEP if name in steps[0]]
    rows = [{"step": n, **step} for n, step in enumerate(steps, start=1)]
    others = [name for name in steps[0] if name not in names]
    return {
        "curves": curves("metrics of the optimizer steps", {name: [step[name] for step in steps] for name in names}),
        "optimizer steps": table(rows, ("step", *names, *differing(steps, others)), most=10),
    }


def _health(health: Mapping[str, Any] | None) -> dict[str, float | int]:
    """The figures that alarms look at."""
    if not health:
        return {}
    return figures(
        {
            **{f"share {label}": float(share) for label, share in health["shares"].items()},
            "fees over P&L before them": float(health["fees"]),
            "share of groups without spread": float(health["no_spread"]),
        }
    )


def alarms_table(alarms: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """The alarms as a table, or that there are none."""
    return table(alarms, ALARM) if alarms else dg.MetadataValue.text("No alarm.")


def evaluations_metadata(window_id: str, rows: Rows) -> Mapping[str, Any]:
    """Each comparison with its interval, and the decision in words."""
    if not rows:
        return {"status": "no evaluation", "reason": "no evaluation ended in this hour"}
    decided = [row for row in rows if row["decision"] != "info"]
    first = (decided or rows)[0]
    effects = {f"{row['split']} effect over {row['baseline']}, $": row["effect"] for row in rows}
    return {
        "status": first["decision"],
        "reason": first["reason"],
        "candidate": counted(row["candidate"] for row in rows) if not decided else first["candidate"],
        "split": first["split"],
        "comparisons": table(rows, (*COMPARISON, *differing(rows, ("candidate", "split", "windows")))),
        "effect with 95 % interval, $": intervals(
            "dollars an agent and window more than the baseline",
            [(_against(row), row["effect"], row["low"], row["high"]) for row in rows],
        ),
        "candidate's P&L": f"{dollars(first['candidate_pnl'])} an agent and window",
        **(figures(effects) if len(effects) == len(rows) else {}),
        **figures({"windows compared": first["windows"]}),
    }


def _against(row: Mapping[str, Any]) -> str:
    """What was compared: the baseline, or on validation windows, where the baseline is one, the candidate."""
    return str(row["candidate"] if row["split"] == "validation" else row["baseline"])
