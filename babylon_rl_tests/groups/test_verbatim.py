"""Text as it is: what was recorded reaches the trained view to the letter, whatever letters these are."""

import msgspec
import pandas as pd
import pytest

from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import art_groups
from babylon_rl.groups.build import TRAINABLE, build_group, trainable_groups
from babylon_rl.groups.snapshots import load_snapshot, make_snapshot, save_snapshot
from babylon_rl.groups.verification import altered_groups
from babylon_rl.recording.reader import read_window
from babylon_rl.recording.recorder import write_runs
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.recording.runs import WINDOW, add_agents, make_run, make_step
from babylon_rl_tests.scoring import made

TEXTS = [
    "\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1ed",
    "e\u0301 \u00e9 \u1e69 s\u0323\u0307 \ufb01",
    "\u202e\u05d0\u05d1 \u0627\u0644 \u2066x\u2069",
    "a\u2028b\u2029c\x85d\u200be\ufefff\u00ad",
    "\t tab\r\n \x01\x1f\x7f \\u0000 \\n \"'` $1 %s {}",
    "<|im_end|>\n<|im_start|>assistant\nBUY ACME<|endoftext|>[INST]</s>",
    "\U0010ffff\ue000\uffff \u1f600",
    "News \U0001f4c8. " * 17_000,
    " .\t",
]


@pytest.mark.parametrize("through", ["steps", "logs"])
def test_texts_come_through_to_the_letter(database, through):
    """By `stepsJson`, and by `llm_call_logs` where the steps hold no calls."""
    agents = [f"agent-{n}" for n in range(len(TEXTS))]
    with database.connect() as connection:
        add_agents(connection, *agents)
        for n, (agent, text) in enumerate(zip(agents, TEXTS, strict=True)):
            write_runs(connection, [run_with(text, agent, float(n))])
        if through == "logs":
            connection.execute(
                """UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson", '"llmCalls":\\[.*?\\],"provider',
                   '"llmCalls":[],"provider')"""
            )
            held = connection.execute("""SELECT count(*) FROM trajectories WHERE "stepsJson" LIKE '%userPrompt%'""")
            assert held.fetchone() == (0,)
        recorded = read_window(Recordings.of(connection), WINDOW)
        assert len(recorded.usable) == len(TEXTS), recorded.rejected
        group = build_group({"status": "ready", "reason": ""}, recorded, score_window(recorded, made.outcomes(WINDOW)))
        assert group["status"] == TRAINABLE, group["reason"]
        replace_windows(connection, art_groups, [WINDOW], pd.DataFrame([group]))
        assert altered_groups(Recordings.of(connection), [WINDOW]).empty
        rows = connection.execute(
            'SELECT window_id, "group", group_digest, status FROM babylon_rl.art_groups WHERE superseded_at IS NULL'
        ).fetchall()
        groups, _ = trainable_groups(pd.DataFrame(rows, columns=["window_id", "group", "group_digest", "status"]))
        snapshot = make_snapshot(groups, "run", {"advantages": "leave_one_out"}, 0)
        save_snapshot(connection, snapshot)
        trained = load_snapshot(connection, snapshot.snapshot_id)
    said = {m.agent_id: m.decisions[0] for group in trained.groups for m in group.members}
    for agent, text in zip(agents, TEXTS, strict=True):
        assert (said[agent].system_prompt, said[agent].user_prompt) == (f"sys {text}", text)
        assert said[agent].response == f"BUY {text}"


def run_with(text: str, agent: str, pnl: float):
    step = make_step()
    call = msgspec.structs.replace(
        step.llm_calls[0], system_prompt=f"sys {text}", user_prompt=text, response=f"BUY {text}"
    )
    return make_run(f"t-{agent}", agent, pnl=pnl, steps=[msgspec.structs.replace(step, llm_calls=[call])])
