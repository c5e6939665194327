"""The bench of submissions on a few hundred jobs: real processes, killed for real, in a process of their own."""

import json
import subprocess
import sys

from babylon_rl.bench.submissions import Submissions
from babylon_rl.settings import REPOSITORY

PROGRAM = """
import json
from babylon_rl.bench.submissions import measure_submissions
found = measure_submissions(200, 1, lambda line: None, workers=2, lanes=5, jobs_a_kill=15, deadline=2.0)
print(json.dumps(found.as_json()))
"""


def test_two_hundred_jobs_meet_every_fault_and_none_is_accepted_twice_lost_or_booked_wrong():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, cwd=REPOSITORY, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["reached"], found["wrong"]
    assert found["jobs"] == 200 == sum(sum(states.values()) for states in found["ends"].values())
    assert found["killed"] >= 3 and len(found["ends"]) > 15
    states = {state for ends in found["ends"].values() for state in ends}
    assert states == {"done", "failed", "in_doubt"}


def test_the_figures_are_missed_where_one_thing_is_wrong():
    good = {"seed": 0, "jobs": 1, "seconds": 1.0, "killed": 0, "submissions": 1, "accepted": 1, "settled": 0}
    right = {"twice": 0, "overlapping": 0, "lost": 0, "wrong": [], "ends": {"nothing": {"done": 1}}}
    assert Submissions(**good, **right).reached
    for name in ("twice", "overlapping", "lost"):
        found = Submissions(**good, **{**right, name: 1})
        assert not found.reached and "MISSED" in found.table()
    assert not Submissions(**good, **{**right, "wrong": ["job x"]}).reached
