"""The deployer over a disk and a database that fail: what is served stays, and what was decided is followed then."""

import errno
import time

import psycopg

from babylon_rl.serving import deployer as deployer_module
from babylon_rl.serving.deployer import Deployer, Pace
from babylon_rl.serving.deployment import Wanted
from babylon_rl.serving.gateway.files import read_keys, read_routes
from babylon_rl.serving.gateway.keys import open_key
from babylon_rl.serving.routing import Target
from babylon_rl.serving.supervision import Kept
from babylon_rl.serving.wanted import Decided
from babylon_rl.settings import Settings


class Away:
    """A database that does not answer, and gives no reason."""

    def __init__(self) -> None:
        self.asked = 0

    def connect(self):
        self.asked += 1
        raise psycopg.OperationalError("")


def deployer(folder, said: list[str], database=None) -> Deployer:
    return Deployer(
        database or Away(), Settings(home=folder), folder, "here", lambda name, seed: folder, said.append, pace=Pace(1)
    )


def test_a_full_disk_holds_up_a_switch_and_ends_nothing(tmp_path, monkeypatch):
    said: list[str] = []
    found = deployer(tmp_path, said)
    one = Target(checkpoint_id="run@1", base_url="http://127.0.0.1:1/v1", model="run@1")
    found._ready, found._attested_at = {"run@1": one}, {"run@1": time.monotonic()}

    def full(folder, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(deployer_module, "write_routes", full)
        patched.setattr(deployer_module, "write_keys", full)
        for _ in range(3):
            found._decided.put(Decided(Wanted(promoted="run@1", base=None), [open_key()]))
            found.look()
        assert read_routes(tmp_path).promoted is None and read_keys(tmp_path) is None
    assert [line for line in said if "No space left" in line] == [said[-1]]
    found._decided.put(Decided(Wanted(promoted="run@1", base=None), [open_key()]))
    found.look()
    assert read_routes(tmp_path).promoted == one and read_keys(tmp_path) == [open_key()]
    found.close()


def test_a_database_that_says_nothing_of_why_it_fails_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(deployer_module, "READ_SECONDS", 0.01)
    said, away = [], Away()
    found = deployer(tmp_path, said, away)
    deadline = time.monotonic() + 5
    while away.asked < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert away.asked >= 3 and "OperationalError" in said[0]
    found.close()


def test_a_process_that_cannot_be_started_on_a_full_disk_is_tried_again():
    said: list[str] = []

    def start():
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = Kept("gateway", start, said.append)
    kept.look()
    assert kept.running is None and "No space left" in said[0]
