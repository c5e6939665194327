"""`babylon-rl score`: the ranking, best and worst with the reason, two decisions side by side, and nothing written."""

import json

import pytest

from babylon_rl.commands.score import cut, main_parts
from babylon_rl.console import console
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.scoring import seam
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.seam import Score, Scorer
from babylon_rl_tests.commands.played import FIRST, play
from babylon_rl_tests.recording.runs import add_agents, add_row

EMPTY = "2025-01-15T20:00"


@pytest.fixture
def score(database, tmp_path, run):
    """Function that scores the first of the played windows."""
    play(database, tmp_path)

    def score(*arguments: str, window: str = FIRST, **environment: str):
        return run("score", "--window", window, *arguments, "--database", database.url, **environment)

    return score


def scores(database) -> int:
    with database.connect() as connection:
        return connection.execute("SELECT count(*) FROM babylon_rl.scored_trajectories").fetchone()[0]


def test_a_window_is_told_with_its_market_its_ranking_and_two_decisions(database, score):
    done = score()
    assert done.returncode == 0, done.stderr
    for part in ("ACME", "resolved YES", "Best:", "Worst:", "agent-1", "Two decisions on", "saw", "answered", "BUY if"):
        assert part in done.stdout, done.stdout
    assert "read now" in done.stdout and f"rescore --from {FIRST} --to {FIRST} --scorer alpha" in done.stdout
    assert scores(database) == 0


def test_its_json_has_all_that_is_told(database, score):
    found = json.loads(score("--json").stdout)
    runs, compared = found["runs"], found["compared"]
    assert (found["window_id"], found["scorer"], found["scorer_version"]) == (FIRST, "alpha", ALPHA.version)
    assert [one["rank"] for one in runs] == list(range(1, 9))
    assert [one["reward"] for one in runs] == sorted((one["reward"] for one in runs), reverse=True)
    first, second = compared["first"], compared["second"]
    assert (first["trajectory_id"], second["trajectory_id"]) == (runs[0]["trajectory_id"], runs[-1]["trajectory_id"])
    assert (first["reward"], first["pnl"]) == (runs[0]["reward"], runs[0]["features"]["window_pnl"])
    for one in (first, second):
        assert one["decision"]["saw"].startswith("ACME $") and one["decision"]["answered"].split()[0] in (
            "BUY", "SELL", "HOLD")  # fmt: skip
        assert one["market"].startswith(one["instrument"])
    assert {row["instrument"] for row in found["outcomes"]} >= {"ACME", "BOLT", "CRUX"}


def test_outcomes_that_are_materialized_are_what_it_scores_with(database, score):
    rows = outcome_windows(database, [FIRST])
    changed = rows.frame.assign(change=[1.0 if kind == "ticker" else 0.0 for kind in rows.frame["kind"]])
    with database.connect() as connection:
        replace_windows(connection, market_outcomes, [FIRST], changed)
    found = json.loads(score("--json").stdout)
    assert found["outcomes_stored"] and found["runs"][0]["parts"]["market_move"] == 1.0
    assert "as materialized" in score().stdout


def test_two_runs_are_compared_by_agent_or_trajectory(score):
    runs = json.loads(score("--json").stdout)["runs"]
    asked = (runs[3]["agent_id"], runs[1]["trajectory_id"])
    compared = json.loads(score("--json", "--compare", *asked).stdout)["compared"]
    assert (compared["first"]["rank"], compared["second"]["rank"]) == (4, 2)
    assert "Rank 4:" in score("--compare", *asked).stdout


@pytest.mark.parametrize("width", [80, 140])
def test_no_line_is_wider_than_the_terminal(score, monkeypatch, width, capsys):
    monkeypatch.setattr(type(console), "width", property(lambda self: width, lambda self, _: None))
    lines = score().stdout.splitlines()
    assert len(lines) > 30
    assert max(map(len, lines)) <= max(width, len(f"  babylon-rl rescore --from {FIRST} --to {FIRST} --scorer alpha"))


@pytest.mark.parametrize(
    ("arguments", "window", "code", "said"),
    [
        ([], "2025-01-15T10:30", 1, "off the hour"),
        ([], EMPTY, 1, "windows --live"),
        (["--scorer", "luck"], FIRST, 2, "alpha, blend, heuristic, ruler"),
        (["--compare", "agent-1", "nobody"], FIRST, 2, "'nobody'"),
    ],
)
def test_a_mistake_is_told_with_what_mends_it(score, arguments, window, code, said):
    done = score(*arguments, window=window)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_window_of_rows_that_cannot_be_used_names_their_reasons(database, score):
    with database.connect() as connection:
        add_agents(connection, "benched")
        add_row(connection, "empty", "benched", stepsJson="[]", windowId=FIRST)
    runs = json.loads(score("--json").stdout)["runs"]
    assert len(runs) == 8
    with database.connect() as connection:
        connection.execute("DELETE FROM trajectories WHERE \"agentId\" <> 'benched'")
    assert "None of the 1 rows" in score().stderr and "empty_steps 1" in score().stderr


def test_a_scorer_that_fails_is_named(score, monkeypatch):
    monkeypatch.setitem(seam._REGISTERED, "broken", Scorer("broken", "3", lambda runs: [1 / 0 for _ in runs.features]))
    done = score("--scorer", "broken")
    assert done.returncode == 1 and "Scorer broken 3" in done.stderr and "ZeroDivisionError" in done.stderr


def test_what_agents_wrote_moves_no_cursor_and_makes_no_markup(database, score, monkeypatch):
    evil = Scorer("evil", "1", lambda runs: [Score(float(n), {}, "[red]\x1b[2J" + "x") for n in range(8)])
    monkeypatch.setitem(seam._REGISTERED, "evil", evil)
    said = score("--scorer", "evil").stdout
    assert "[red]" in said and "\x1b" not in said


def test_what_a_judge_said_and_signs_of_injection_stand_beside_the_reward(score, monkeypatch):
    told = [
        Score(n / 10, {}, "why", process=n / 8, hindsight=0.25, signs=["asks for 1.0"] * (n == 7)) for n in range(8)
    ]
    monkeypatch.setitem(seam._REGISTERED, "judged", Scorer("judged", "1", lambda runs: told))
    said = score("--scorer", "judged").stdout
    assert "process" in said and "0.88" in said and "hindsight" in said
    assert said.count("signs of injection: asks for 1.0") == 1
    assert "process" not in score().stdout


def test_of_equal_rewards_none_is_called_the_best(score):
    said = score("--scorer", "heuristic").stdout
    assert "All rewards are equal" in said and "Rank 1:" in said and "Best:" not in said


def test_a_long_text_keeps_its_beginning_and_its_end_and_says_what_is_missing():
    text = "".join(chr(97 + n % 26) for n in range(5000))
    short = cut(text, 900)
    assert short.startswith(text[:600]) and short.endswith(text[-300:]) and "4,100 characters" in short
    assert cut(" as it is \n") == "as it is"


def test_parts_that_all_runs_share_say_nothing_of_a_rank():
    runs = [{"parts": {"a": 1.0, "same": 2.0, "b": 0.0}}, {"parts": {"a": 2.0, "same": 2.0}}]
    assert main_parts(runs, 4) == ["a", "b"] and main_parts(runs, 1) == ["a"]
