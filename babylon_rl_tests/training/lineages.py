"""Snapshots and checkpoints planted without training, in each format that a snapshot is stored in."""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import psycopg

from babylon_rl.groups.provenance import IMPORTANCE_WEIGHTED
from babylon_rl.groups.trained_view import Decision, Group, Member, canonical_json
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, TrainingRun, save_checkpoint, start_run

ORIGIN = ("the group's digest", "the scores' digest", "the window's revision", "the outcomes' revision")


def start(connection: psycopg.Connection, name: str = "run", state: str = "finished", **fields) -> None:
    """A run with its step 0."""
    run = TrainingRun(
        training_run=name, base_model="tiny", seed=0, recipe=Recipe(), schedule={}, first_window="2025-01-15T00:00",
        last_window="2025-02-15T00:00", state=state,
    )  # fmt: skip
    start_run(connection, msgspec.structs.replace(run, **fields))


def group(window_id: str, agents: Sequence[str], label: str | None = None, calls: int = 1) -> Group:
    """A group with a member an agent; rewards and advantages are numbered."""
    return Group(
        window_id=window_id,
        scorer="alpha",
        scorer_version="7",
        members=[
            Member(
                trajectory_id=f"{window_id}-{agent}", agent_id=agent, reward=place / 10, advantage=place / 2,
                checkpoint="run@0", label=msgspec.UNSET if label is None else label,
                decisions=[decision(f"{window_id}-{agent}/{number}") for number in range(calls)],
            )
            for place, agent in enumerate(agents)
        ],
    )  # fmt: skip


def decision(call_id: str) -> Decision:
    return Decision(
        call_id=call_id, system_prompt="s", user_prompt="u\ud800", response="HOLD", token_ids=[1], logprobs=[0.0],
        prompt_token_ids=[1], choices=None, temperature=1.0, top_p=1.0, exploration=0.0,
    )  # fmt: skip


def snapshot(connection: psycopg.Connection, groups: Sequence[Group], form: int = 2) -> str:
    """Store a snapshot; form 1 has its groups in its content, form 2 in rows. Returns its id."""
    digests = [[one.window_id, hashlib.sha256(canonical_json(one).encode()).hexdigest()] for one in groups]
    content = canonical_json({
        "format": form, "training_run": "run", "settings": {}, "seed": 0, "left_out": {},
        "groups": groups if form == 1 else digests,
    })  # fmt: skip
    snapshot_id = hashlib.sha256(content.encode()).hexdigest()
    connection.execute(
        "INSERT INTO babylon_rl.snapshots (snapshot_id, training_run, content, window_ids, code_version) "
        "VALUES (%s, 'run', %s, %s, '0.0 made')",
        (snapshot_id, content, [one.window_id for one in groups]),
    )
    for place, one in enumerate(groups if form == 2 else ()):
        connection.execute(
            "INSERT INTO babylon_rl.snapshot_groups VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (snapshot_id, place, one.window_id, canonical_json(one), digests[place][1], *ORIGIN),
        )
        connection.cursor().executemany(
            "INSERT INTO babylon_rl.snapshot_members VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    snapshot_id, one.window_id, m.trajectory_id, m.agent_id,
                    None if m.label is msgspec.UNSET else m.label, IMPORTANCE_WEIGHTED, m.reward, m.advantage,
                )
                for m in one.members
            ],
        )  # fmt: skip
    return snapshot_id


def checkpoint(
    connection: psycopg.Connection, name: str, parent: str, made_from: str | None, changes: Mapping | None = None
) -> str:
    """Book a checkpoint `run@step-…`, with the job that made it."""
    run, _, rest = name.partition("@")
    fields = {
        "checkpoint_id": name, "training_run": run, "parent_id": parent, "snapshot_id": made_from,
        "base_model": "tiny", "step": int(rest.partition("-")[0]), "path": f"/nowhere/{name}",
        "weights_sha256": "0" * 64, "last_window": f"2025-01-15T{int(rest.partition('-')[0]):02}:00", "metrics": {},
        "state": "ready", "backend": "torch", "code_version": "0.0 trained",
    }  # fmt: skip
    save_checkpoint(connection, Checkpoint(**{**fields, **(changes or {})}))
    if made_from is not None:
        job(connection, made_from, parent, "done")
    return name


def job(connection: psycopg.Connection, snapshot_id: str, parent: str, state: str) -> str:
    """A job in that state, by legal moves."""
    job_id = hashlib.sha256(f"{snapshot_id}{parent}".encode()).hexdigest()
    connection.execute(
        """INSERT INTO babylon_rl.training_attempts (job_id, snapshot_id, parent_id, settings_digest, backend, state,
           step_before) VALUES (%s, %s, %s, 'x', 'torch', 'written', 0) ON CONFLICT DO NOTHING""",
        (job_id, snapshot_id, parent),
    )
    for after in ("running", state) if state not in ("written", "running") else (state,):
        connection.execute("UPDATE babylon_rl.training_attempts SET state = %s WHERE job_id = %s", (after, job_id))
    return job_id
