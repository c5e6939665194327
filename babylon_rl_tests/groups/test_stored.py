import msgspec
import pandas as pd

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows, replace_windows
from babylon_rl.database.tables import metadata
from babylon_rl.groups.build import build_group, trainable_groups
from babylon_rl.groups.trained_view import decode_group
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made


def test_scores_and_groups_survive_the_database_with_their_digests(database):
    certain = msgspec.structs.replace(made.call("a", "BUY"), logprobs=[-1.2345678901234567e-17, -0.0])
    window = made.recorded(
        made.trajectory("a", "BUY", 5.0, calls=[certain]),
        made.trajectory("b", "SELL", -1 / 3),
        made.trajectory("c", "HOLD", calls=[], provenance="no_text"),
    )
    scored_table, group_table = (
        metadata.tables[f"babylon_rl.{name}"] for name in ("scored_trajectories", "art_groups")
    )
    scored = score_window(window, made.outcomes())
    with database.connect() as connection:
        replace_windows(connection, scored_table, [made.WINDOW], scored)
        stored = read_frame(connection, current_rows(scored_table, [made.WINDOW]))
        ready = {"status": "ready", "reason": ""}
        row = build_group(ready, window, stored)
        assert row == {**build_group(ready, window, scored), "scores_digest": row["scores_digest"]}
        replace_windows(connection, group_table, [made.WINDOW], pd.DataFrame([row]))
        groups, others = trainable_groups(read_frame(connection, current_rows(group_table)))
    assert others == {} and groups == [decode_group(row["group"])]
    assert groups[0].members[0].decisions[0].logprobs == certain.logprobs
