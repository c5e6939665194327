"""The whole way of texts without tokens, as a TypeScript recorder or another's model leaves them: from the recording
through the assets and the real trainer's process into a checkpoint that gives the better answers more often."""

import threading
from pathlib import Path
from statistics import fmean

import dagster as dg
import pytest
import torch
from psycopg.rows import dict_row

from babylon_rl.database.connect import Database
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.groups.admitting import labels_of
from babylon_rl.groups.snapshots import Snapshot, load_snapshot
from babylon_rl.groups.trained_view import Member
from babylon_rl.market.agents import make_agents
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.observation import observation
from babylon_rl.market.play import play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.recording.reader import Recordings, read_window
from babylon_rl.recording.recorder import Recorder
from babylon_rl.serving.sampler import SampleRequest, sample
from babylon_rl.settings import get_settings
from babylon_rl.training.policy import Answer, Policy
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import TrainingRun, list_checkpoints, start_run
from babylon_rl.windows import shift_window
from babylon_rl_tests.defs.ranges import materialize, span
from babylon_rl_tests.market.scripted import completion, endpoint

TEXTS, MIXED = "2025-01-15T10:00", shift_window("2025-01-15T10:00", 1)
AGENTS = 8


def record(database: Database, folder: Path, policy: Policy) -> None:
    """Two windows: of texts alone, and one in which the base model's answers stand beside texts."""
    windows = {window_id: make_window(1, "train", number) for number, window_id in enumerate((TEXTS, MIXED))}
    mixed = sorted(observation(windows[MIXED], agent) for agent in make_agents(1, "train", 1, AGENTS))
    # By what is asked and not by when: agents of a window ask at the same time.
    logged = {prompt: seed for seed, prompt in enumerate(mixed[::2])}
    lock = threading.Lock()

    def reply(body):
        prompt, choices = body["messages"][-1]["content"], body["structured_outputs"]["choice"]
        if prompt not in logged:
            text = choices[sum(map(ord, prompt)) % 2]  # BUY or SELL: somebody is wrong
            return 200, completion(text, logprobs=None, token_ids=None, prompt_token_ids=None, model="gpt-4o")
        wanted = SampleRequest(
            messages=body["messages"], adapter=None, choices=choices, temperature=1.0, top_p=1.0, exploration=0.1,
            max_tokens=8, seed=logged[prompt],
        )  # fmt: skip
        with lock:
            (drawn,) = sample(policy, [wanted])
        logprobs = {"content": [{"token": "", "logprob": logprob} for logprob in drawn.logprobs]}
        told = {"token_ids": drawn.token_ids, "prompt_token_ids": drawn.prompt_token_ids, "checkpoint": "run@0"}
        return 200, completion(drawn.text, logprobs=logprobs, **told)

    with endpoint(reply) as script, Recorder(database, folder / "spool.jsonl") as recorder:
        where, sampling = Endpoint(script.base_url, "policy"), Sampling(seed=4, exploration=0.1)
        pairs = list(windows.items())
        play_windows(database, recorder, where, pairs, agents=AGENTS, label=Label("train"), sampling=sampling)
        assert recorder.close().complete


def logprobs(policy: Policy, folder: Path | None, answers: list[Answer]) -> list[float]:
    """Of each answer under the checkpoint in the folder, or under the base model."""
    if folder is not None and folder.name not in policy.adapters:
        policy.add_adapter(folder, folder.name)
    found = [0.0] * len(answers)
    with torch.no_grad(), policy.select(folder and folder.name):
        for members, evaluated in policy.evaluate(answers):
            for member, one in zip(members, evaluated, strict=True):
                found[member] = float(one.logprobs.sum())
    return found


def texts_of(database: Database, policy: Policy, window_id: str) -> dict[str, Answer]:
    """The window's texts without tokens, in those of the base model, by trajectory."""
    with database.connect() as connection:
        runs = read_window(Recordings.of(connection), window_id).usable
    found = {}
    for run in runs:
        if run.provenance == "no_logprobs":
            (said,) = run.steps[0].llm_calls
            messages = [
                {"role": "system", "content": said.system_prompt},
                {"role": "user", "content": said.user_prompt},
            ]
            found[run.trajectory_id] = Answer(
                policy.chat.prompt(messages), policy.chat.answer(said.response), None, 1.0
            )
    return found


@pytest.fixture
def updates(database, instance: dg.DagsterInstance, tiny, policy, tmp_path, monkeypatch) -> list[dict]:
    """Rows of the two windows' updates, trained by the assets and the trainer's own process."""
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BABYLON_RL_THREADS", "1")
    get_settings.cache_clear()
    record(database, tmp_path, policy)
    recipe = Recipe(
        windows_per_update=1, minibatches=1, warmup_steps=0, lora_layers=1, stale_limit=1, advantages="leave_one_out",
        exploration=0.1,
    )  # fmt: skip
    run = TrainingRun(
        training_run="run", base_model=str(tiny), seed=0, recipe=recipe, schedule={}, first_window=TEXTS,
        last_window=None, state="running",
    )  # fmt: skip
    with database.connect() as connection:
        start_run(connection, run)
    assert materialize(database, instance, span(TEXTS, MIXED), [*DATA_ASSETS, "trained_checkpoints"]).success
    with database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM babylon_rl.trained_checkpoints ORDER BY window_id").fetchall()


def trained(database: Database, update: dict) -> tuple[Snapshot, dict[str, Member]]:
    """The update's snapshot, and its members by trajectory."""
    with database.connect() as connection:
        snapshot = load_snapshot(connection, update["snapshot_id"])
    return snapshot, {member.trajectory_id: member for group in snapshot.groups for member in group.members}


def test_better_texts_are_imitated_worse_ones_are_not_and_logged_answers_keep_their_loss(database, updates, policy):
    first, second = updates
    assert first["updated"] and second["updated"], (first["reason"], second["reason"])
    with database.connect() as connection:
        folders = {c.checkpoint_id: Path(c.path) for c in list_checkpoints(connection) if c.path}
        assert connection.execute("SELECT count(*) FROM babylon_rl.recorded_calls").fetchone() == (AGENTS // 2,)
        rewards = dict(
            connection.execute(
                "SELECT trajectory_id, reward FROM babylon_rl.scored_trajectories WHERE window_id = %s", (TEXTS,)
            ).fetchall()
        )

    # Texts alone: who did better than the others is a member; who did worse is counted, and is none.
    snapshot, members = trained(database, first)
    assert labels_of(members.values()) == {"weighted_supervised": {"no_logprobs": len(members)}}
    assert set(members) == {name for name, reward in rewards.items() if reward > fmean(rewards.values())}
    assert snapshot.left_out == {"members not_better_than_baseline": AGENTS - len(members)}
    assert 0 < len(members) < AGENTS and first["metrics"]["mean"]["answers"] == len(members)
    assert "ratio" not in first["metrics"]["mean"] and "ess" not in first["metrics"]["mean"]
    texts = texts_of(database, policy, TEXTS)
    assert set(texts) == set(rewards)
    better = [texts[name] for name in members]
    before, after = logprobs(policy, None, better), logprobs(policy, folders[first["checkpoint_id"]], better)
    assert all(one < other for one, other in zip(before, after, strict=True))

    # Beside logged answers: each loss takes its own.
    snapshot, members = trained(database, second)
    imitated = {name for name, member in members.items() if member.loss == "weighted_supervised"}
    assert labels_of(members.values()) == {
        "importance_weighted": {"stale(1)": AGENTS // 2},
        "weighted_supervised": {"no_logprobs": len(imitated)},
    }
    mean = second["metrics"]["mean"]
    assert mean["answers"] == len(members) and mean["ratio"] > 0 and 0 < mean["ess"] <= 1
    texts = texts_of(database, policy, MIXED)
    assert imitated and imitated < set(texts) and len(texts) == AGENTS // 2
    better = [texts[name] for name in imitated]
    before, after = (logprobs(policy, folders[update["checkpoint_id"]], better) for update in updates)
    assert fmean(after) > fmean(before)
