"""`babylon-rl keys`: a key is shown once, kept as a digest, and good for as long as it says."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway.keys import PREFIX, secret_digest
from babylon_rl.serving.key_store import create_key, list_keys, load_keys, revoke_key, rotate_key


@pytest.fixture
def keys(run, database):
    """Function that runs `babylon-rl keys …` on the test's database."""
    return lambda *arguments: run("keys", *arguments, "--database", database.url)


def stored_texts(database) -> str:
    with database.connect() as connection:
        return str(connection.execute("SELECT to_jsonb(k) FROM babylon_rl.gateway_keys k").fetchall())


def test_a_key_is_printed_once_and_only_its_digest_is_kept(keys, database):
    made = keys("create", "desk of agent 7", "--agent", "agent-7", "--requests-per-minute", "60", "--in-flight", "4")
    secret = made.stdout.strip()
    key_id, random_part = secret.removeprefix(PREFIX).split("_", 1)
    assert secret.startswith(PREFIX) and len(random_part) == 43  # 256 bits
    assert random_part not in made.stderr and random_part not in stored_texts(database)
    with database.connect() as connection:
        [key] = load_keys(connection)
    assert (key.key_id, key.secret_sha256, key.agent_id) == (key_id, secret_digest(secret), "agent-7")
    assert key.scopes == ("call", "record") and key.expires_at is None
    assert (key.requests_per_minute, key.tokens_per_minute, key.in_flight) == (60, None, 4)
    for listed in (keys("list").stdout, keys("list", "--json").stdout):
        assert key_id in listed and random_part not in listed and key.secret_sha256 not in listed


def test_json_of_create_holds_the_key_and_when_it_ends(keys):
    made = json.loads(keys("create", "x", "--scope", "metrics", "--scope", "call", "--days", "2", "--json").stdout)
    assert made["key"].startswith(f"{PREFIX}{made['key_id']}_")
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=1.9) < left < timedelta(days=2.1)
    [listed] = json.loads(keys("list", "--json").stdout)
    assert listed["scopes"] == ["call", "metrics"] and listed["state"] == "good"


def test_a_rotated_key_goes_on_for_its_grace_beside_its_successor_and_no_longer(database):
    with database.connect() as connection:
        old = create_key(connection, "a", agent_id="agent-1", scopes=["call", "pin"], tokens_per_minute=9)
        new = rotate_key(connection, old.key_id, timedelta(minutes=60))
        good = {key.key_id: key for key in load_keys(connection)}
        assert good.keys() == {old.key_id, new.key_id} and new.secret != old.secret
        assert good[new.key_id].scopes == ("call", "pin") and good[new.key_id].agent_id == "agent-1"
        assert good[new.key_id].tokens_per_minute == 9 and good[new.key_id].expires_at is None
        assert 3500 < good[old.key_id].expires_at - datetime.now(UTC).timestamp() <= 3600
        with pytest.raises(ServingError, match=f"rotate {new.key_id}"):
            rotate_key(connection, old.key_id)
        at_once = rotate_key(connection, new.key_id, timedelta(0))
        assert {key.key_id for key in load_keys(connection)} == {old.key_id, at_once.key_id}


def test_the_grace_makes_no_key_last_longer_than_it_was_to(database):
    with database.connect() as connection:
        old = create_key(connection, "a", lasts=timedelta(minutes=5))
        new = rotate_key(connection, old.key_id, timedelta(minutes=60))
        ends = {key.key_id: key.expires_at for key in list_keys(connection)}
    assert ends[old.key_id] == old.expires_at
    assert timedelta(minutes=4) < ends[new.key_id] - datetime.now(UTC) <= timedelta(minutes=5)


def test_a_revoked_key_and_an_expired_one_are_not_loaded_and_cannot_be_rotated(database):
    with database.connect() as connection:
        revoked = create_key(connection, "a")
        expired = create_key(connection, "b", lasts=timedelta(seconds=-1))
        revoke_key(connection, revoked.key_id)
        assert load_keys(connection) == []
        states = {key.key_id: key.state(datetime.now(UTC)) for key in list_keys(connection)}
        assert states == {revoked.key_id: "revoked", expired.key_id: "expired"}
        for made, state in ((revoked, "revoked"), (expired, "expired")):
            with pytest.raises(ServingError, match=f"is {state}: create a key instead"):
                rotate_key(connection, made.key_id)


def test_revoking_twice_is_said_and_keeps_the_first_time(keys, database):
    with database.connect() as connection:
        made = create_key(connection, "a")
    assert "It was before" not in keys("revoke", made.key_id).stdout
    with database.connect() as connection:
        [before] = list_keys(connection)
    assert "It was before" in keys("revoke", made.key_id).stdout
    with database.connect() as connection:
        assert list_keys(connection) == [before] and before.revoked_at is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "x", "--scope", "admin"), "There is no scope 'admin'. Name some of call, record, pin, metrics."),
        (("create", " "), "name of a key"),
        (("create", "x", "--agent", ""), "agent of a key"),
        (("rotate", "nobody"), "There is no key 'nobody'"),
        (("revoke", "nobody"), "There is no key 'nobody'"),
    ],
)
def test_what_cannot_be_is_told_with_what_can(keys, arguments, said):
    ended = keys(*arguments)
    assert ended.returncode == 1 and said in " ".join(ended.stderr.split())
