"""Which current rows were computed from something that is no longer current, asset by asset along the data's way.

Told by what the rows themselves carry (revisions, digests, parents), so it holds for any number of windows and for a
checkpoint's descendants, at which Dagster's own staleness does not look. A row that carries nothing (it was written
before there was a column for it) is unknown, not stale.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import psycopg

ASSETS = (
    *("scored_trajectories", "judge_calibration", "art_groups", "trained_checkpoints", "checkpoint_evaluations"),
    *("market_evaluations", "replay_evaluations", "online_evaluations"),
)
COLUMNS = ("asset", "window_id", "why")

Why = dict[str, str]

# One row stands for its window: a window's scores are written together. The outcomes' digest is `scoring.revision_of`.
_SCORES = """
    WITH outcomes AS (
        SELECT window_id, encode(sha256(convert_to(string_agg(told, E'\\n' ORDER BY told COLLATE "C"), 'UTF8')), 'hex')
                   AS revision
        FROM (SELECT window_id, instrument || '=' || revision AS told
              FROM babylon_rl.market_outcomes WHERE superseded_at IS NULL) one
        GROUP BY window_id
    )
    SELECT w.window_id,
           CASE WHEN s.window_revision IS NULL THEN 'usable trajectories are not scored'
                WHEN s.window_revision <> w.revision THEN 'the window changed since it was scored'
                ELSE 'the outcomes changed since the window was scored' END
    FROM babylon_rl.windows w
    LEFT JOIN LATERAL (
        SELECT window_revision, outcome_revision FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = w.window_id AND s.superseded_at IS NULL LIMIT 1
    ) s ON true
    LEFT JOIN outcomes o ON o.window_id = w.window_id
    WHERE w.superseded_at IS NULL
      AND CASE WHEN s.window_revision IS NULL THEN w.usable > 0
               ELSE s.window_revision <> w.revision
                    OR s.outcome_revision <> coalesce(o.revision, encode(sha256(''), 'hex')) END
    ORDER BY w.window_id
"""

_CALIBRATIONS = """
    SELECT c.window_id, 'the scores changed since their judge was calibrated'
    FROM babylon_rl.judge_calibration c
    LEFT JOIN LATERAL (
        SELECT digest FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = c.window_id AND s.superseded_at IS NULL LIMIT 1
    ) s ON true
    WHERE c.superseded_at IS NULL AND c.scores_digest IS DISTINCT FROM s.digest
    ORDER BY c.window_id
"""

_GROUPS = """
    SELECT g.window_id,
           CASE WHEN g.window_revision <> w.revision THEN 'the window changed since its group was built'
                WHEN g.scores_digest IS DISTINCT FROM s.digest THEN 'the scores changed since the group was built'
                WHEN g.judge_verdict <> c.verdict
                    THEN 'the judge''s verdict was ' || g.judge_verdict || ' when the group was built'
                ELSE 'the window was ' || CASE WHEN w.status = 'ready' THEN 'not ready' ELSE 'ready' END
                     || ' when its group was built' END
    FROM babylon_rl.art_groups g
    JOIN babylon_rl.windows w ON w.window_id = g.window_id AND w.superseded_at IS NULL
    LEFT JOIN babylon_rl.judge_calibration c ON c.window_id = g.window_id AND c.superseded_at IS NULL
    LEFT JOIN LATERAL (
        SELECT digest FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = g.window_id AND s.superseded_at IS NULL LIMIT 1
    ) s ON true
    WHERE g.superseded_at IS NULL AND g.window_revision IS NOT NULL
      AND (g.window_revision <> w.revision OR g.scores_digest IS DISTINCT FROM s.digest
           OR g.judge_verdict <> c.verdict
           OR (g.status = 'not_ready') <> (w.status <> 'ready'))
    ORDER BY g.window_id
"""

# Of a checkpoint that several rows name, the latest says what it was made from.
_CONSUMED = """
    WITH looked AS (
        SELECT row_id, window_id, checkpoint_id, updated, superseded_at, group_digests, training_run
        FROM babylon_rl.trained_checkpoints WHERE superseded_at IS NULL AND group_digests IS NOT NULL
        UNION ALL
        SELECT * FROM (
            SELECT DISTINCT ON (checkpoint_id)
                   row_id, window_id, checkpoint_id, updated, superseded_at, group_digests, training_run
            FROM babylon_rl.trained_checkpoints WHERE updated ORDER BY checkpoint_id, row_id DESC) latest
        WHERE superseded_at IS NOT NULL
    )
    SELECT l.window_id, l.checkpoint_id, l.updated, l.superseded_at IS NOT NULL, min(c.key) FILTER (
               WHERE g.group_digest IS DISTINCT FROM c.value OR c.key = ANY(%s)),
           -- A row of another run's there says only whose window it is.
           EXISTS (SELECT FROM babylon_rl.trained_checkpoints n WHERE n.window_id = l.window_id
                   AND n.superseded_at IS NULL AND n.training_run IS NOT DISTINCT FROM l.training_run)
    FROM looked l
    LEFT JOIN LATERAL jsonb_each_text(l.group_digests) c ON true
    LEFT JOIN babylon_rl.art_groups g ON g.window_id = c.key AND g.superseded_at IS NULL
    GROUP BY l.row_id, l.window_id, l.checkpoint_id, l.updated, l.superseded_at, l.training_run
    ORDER BY l.row_id
"""

_CARRIED = """
    SELECT window_id, CASE WHEN checkpoint_id = ANY(%(stale)s) THEN checkpoint_id ELSE parent_id END
    FROM babylon_rl.trained_checkpoints
    WHERE superseded_at IS NULL AND (checkpoint_id = ANY(%(stale)s) OR parent_id = ANY(%(stale)s))
    ORDER BY window_id
"""

_EVALUATED = """
    SELECT window_id, CASE WHEN candidate = ANY(%(stale)s) THEN candidate ELSE baseline END
    FROM babylon_rl.checkpoint_evaluations
    WHERE superseded_at IS NULL AND (candidate = ANY(%(stale)s) OR baseline = ANY(%(stale)s))
    ORDER BY window_id
"""

_PLAYED = """
    SELECT window_id, CASE WHEN candidate = ANY(%(stale)s) THEN candidate ELSE baseline END
    FROM babylon_rl.market_evaluations
    WHERE superseded_at IS NULL AND (candidate = ANY(%(stale)s) OR baseline = ANY(%(stale)s))
    ORDER BY window_id
"""

_REPLAYED = """
    SELECT window_id, CASE WHEN candidate = ANY(%(stale)s) THEN candidate ELSE baseline END
    FROM babylon_rl.replay_evaluations
    WHERE superseded_at IS NULL AND (candidate = ANY(%(stale)s) OR baseline = ANY(%(stale)s))
    ORDER BY window_id
"""

# A window's scores name the outcomes that they rest on.
_REPLAYED_WINDOWS = """
    SELECT DISTINCT r.window_id,
           CASE WHEN r.window_revision <> w.revision THEN 'the window changed since it was replayed'
                ELSE 'the outcomes changed since the window was replayed' END
    FROM babylon_rl.replay_evaluations r
    JOIN babylon_rl.windows w ON w.window_id = r.window_id AND w.superseded_at IS NULL
    LEFT JOIN LATERAL (
        SELECT outcome_revision FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = r.window_id AND s.superseded_at IS NULL LIMIT 1
    ) s ON true
    WHERE r.superseded_at IS NULL
      AND (r.window_revision <> w.revision OR r.outcome_revision <> s.outcome_revision)
    ORDER BY 1
"""

_OBSERVED = """
    SELECT DISTINCT e.window_id,
           CASE WHEN e.window_revision <> w.revision THEN 'the window changed since it was observed'
                ELSE 'the scores changed since the window was observed' END
    FROM babylon_rl.online_evaluations e
    JOIN babylon_rl.windows w ON w.window_id = e.window_id AND w.superseded_at IS NULL
    LEFT JOIN LATERAL (
        SELECT digest FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = e.window_id AND s.superseded_at IS NULL LIMIT 1
    ) s ON true
    WHERE e.superseded_at IS NULL
      AND (e.window_revision <> w.revision OR e.scores_digest IS DISTINCT FROM s.digest)
    ORDER BY 1
"""


def stale_rows(connection: psycopg.Connection, assets: Sequence[str] = ASSETS) -> pd.DataFrame:
    """Windows of the assets whose rows are stale: asset, window_id, why (the first reason), by asset and window.

    What depends on a stale row is stale too, though the row itself was not yet computed anew.
    """
    last = max((ASSETS.index(asset) for asset in assets), default=-1)
    found: dict[str, Why] = {"scored_trajectories": _told(connection.execute(_SCORES).fetchall())}
    if last >= ASSETS.index("judge_calibration"):
        found["judge_calibration"] = _calibrations(connection, found["scored_trajectories"])
    if last >= ASSETS.index("art_groups"):
        found["art_groups"] = _groups(connection, found["scored_trajectories"], found["judge_calibration"])
    if last >= ASSETS.index("trained_checkpoints"):
        windows, checkpoints = _trained(connection, found["art_groups"])
        found["trained_checkpoints"] = windows
        rows = connection.execute(_EVALUATED, {"stale": list(checkpoints)})
        found["checkpoint_evaluations"] = _told((w, f"it compares {c}: {checkpoints[c]}") for w, c in rows)
        rows = connection.execute(_PLAYED, {"stale": list(checkpoints)})
        found["market_evaluations"] = _told((w, f"it compares {c}: {checkpoints[c]}") for w, c in rows)
        rows = connection.execute(_REPLAYED, {"stale": list(checkpoints)})
        found["replay_evaluations"] = _told(connection.execute(_REPLAYED_WINDOWS).fetchall()) | _told(
            (w, f"it compares {c}: {checkpoints[c]}") for w, c in rows
        )
        found["online_evaluations"] = _observed(connection, found["scored_trajectories"])
    told = [(a, w, why) for a in ASSETS if a in assets for w, why in sorted(found.get(a, {}).items())]
    return pd.DataFrame(told, columns=list(COLUMNS))


def _calibrations(connection: psycopg.Connection, scores: Mapping[str, str]) -> Why:
    own = _told(connection.execute(_CALIBRATIONS))
    made = connection.execute(
        "SELECT window_id FROM babylon_rl.judge_calibration WHERE window_id = ANY(%s) AND superseded_at IS NULL",
        (list(scores),),
    )
    return {window_id: f"its scores are stale: {scores[window_id]}" for (window_id,) in made} | own


def _groups(connection: psycopg.Connection, scores: Mapping[str, str], calibrations: Mapping[str, str]) -> Why:
    own = _told(connection.execute(_GROUPS))
    upstream = {w: f"its judge's calibration is stale: {why}" for w, why in calibrations.items()}
    upstream |= {w: f"its scores are stale: {why}" for w, why in scores.items()}
    built = connection.execute(
        "SELECT window_id FROM babylon_rl.art_groups WHERE window_id = ANY(%s) AND superseded_at IS NULL",
        (list(upstream),),
    )
    return {window_id: upstream[window_id] for (window_id,) in built} | own


def _trained(connection: psycopg.Connection, groups: Mapping[str, str]) -> tuple[Why, Why]:
    """Stale windows of `trained_checkpoints`, and stale checkpoints, each with the reason."""
    windows: Why = {}
    roots: Why = {}
    for window_id, checkpoint, updated, superseded, changed, own in connection.execute(_CONSUMED, (list(groups),)):
        if changed is not None:
            why = f"the group of {changed} changed since it was trained on"
            if changed in groups:
                why = f"the group of {changed} is stale: {groups[changed]}"
        elif superseded and own:
            why = f"the update of {window_id} was made anew"
        else:
            continue
        if updated:
            roots.setdefault(checkpoint, why)
        if not superseded:
            windows.setdefault(window_id, why)
    checkpoints = _with_descendants(connection, roots)
    for window_id, checkpoint in connection.execute(_CARRIED, {"stale": list(checkpoints)}):
        windows.setdefault(window_id, f"it rests on {checkpoint}: {checkpoints[checkpoint]}")
    return windows, checkpoints


def _observed(connection: psycopg.Connection, scores: Mapping[str, str]) -> Why:
    own = _told(connection.execute(_OBSERVED).fetchall())
    made = connection.execute(
        "SELECT window_id FROM babylon_rl.online_evaluations WHERE window_id = ANY(%s) AND superseded_at IS NULL",
        (list(scores),),
    )
    return {window_id: f"its scores are stale: {scores[window_id]}" for (window_id,) in made} | own


def _with_descendants(connection: psycopg.Connection, roots: Mapping[str, str]) -> Why:
    """The checkpoints and all that were trained from them, however far."""
    if not roots:
        return {}
    root_of: dict[str, str] = {}
    # Parents come before their children.
    query = "SELECT checkpoint_id, parent_id FROM babylon_rl.checkpoints ORDER BY training_run, step, checkpoint_id"
    for checkpoint, parent in connection.execute(query):
        if checkpoint in roots:
            root_of[checkpoint] = checkpoint
        elif parent in root_of:
            root_of[checkpoint] = root_of[parent]
    return {c: roots[c] if c == root else f"it descends from {root}: {roots[root]}" for c, root in root_of.items()}


def _told(rows: Iterable[tuple[str, str]]) -> Why:
    told: Why = {}
    for window_id, why in rows:
        told.setdefault(window_id, why)
    return told
