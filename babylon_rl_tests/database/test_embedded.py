"""The embedded server comes up from any state, for any number of processes, and goes down only when told."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from babylon_rl.database import binaries
from babylon_rl.database.embedded import (
    APPLICATION_DATABASE,
    DAGSTER_DATABASE,
    LONGEST_SOCKET_FOLDER,
    EmbeddedServer,
    default_home,
)
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import REPOSITORY, Settings

UP = (
    "import sys; from pathlib import Path; from babylon_rl.database.embedded import EmbeddedServer; "
    "EmbeddedServer(Path(sys.argv[1])).up()"
)


def others_up(server: EmbeddedServer, count: int) -> list[subprocess.Popen]:
    return [subprocess.Popen([sys.executable, "-c", UP, str(server.home)], cwd=REPOSITORY) for _ in range(count)]


def postmaster(server: EmbeddedServer) -> psutil.Process:
    return psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))


def rows(server: EmbeddedServer) -> int:
    with psycopg.connect(server.url(APPLICATION_DATABASE)) as connection:
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


@pytest.fixture(scope="module")
def own(open_folder: Path):
    """A server of this file, started by several processes at once and killed by the tests."""
    server = EmbeddedServer(open_folder / "own")
    started = others_up(server, 3)
    assert [process.wait(120) for process in started] == [0, 0, 0]
    with psycopg.connect(server.url(APPLICATION_DATABASE)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
    yield server
    server.down()


def test_both_databases_are_there_and_outlive_the_process_that_started_them(own):
    for name in (APPLICATION_DATABASE, DAGSTER_DATABASE):
        with psycopg.connect(own.url(name)) as connection:
            assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_a_second_up_is_quick(own):
    first = postmaster(own).pid
    start = time.perf_counter()
    own.up()
    assert time.perf_counter() - start < 0.5
    assert postmaster(own).pid == first


def test_only_the_servers_user_may_enter_the_data_and_the_socket(own):
    for folder in (own.data, own.socket_folder):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert postmaster(own).uids().real != 0


def test_killed_without_warning_it_comes_up_with_its_data_for_several_at_once(own):
    postmaster(own).kill()
    started = others_up(own, 2)
    own.up()
    assert [process.wait(60) for process in started] == [0, 0]
    assert rows(own) == 1


def test_a_stopped_server_comes_up_again_and_down_twice_is_no_error(own):
    own.down()
    assert not own.running()
    own.down()
    own.up()
    assert rows(own) == 1


def test_a_pid_file_that_names_another_program_does_not_stop_it(own):
    pid_file = own.data / "postmaster.pid"
    text = pid_file.read_text()
    own.down()
    owner = own.data.stat().st_uid
    arguments = {"user": owner} if os.geteuid() == 0 else {}
    other = subprocess.Popen(["sleep", "60"], **arguments)
    try:
        pid_file.write_text(text.replace(text.split()[0], str(other.pid), 1))
        assert not own.running()
        own.down()
        own.up()
        assert rows(own) == 1 and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_zombie_postmaster_does_not_stop_it(own):
    pid_file = own.data / "postmaster.pid"
    text = pid_file.read_text()
    own.down()
    zombie = subprocess.Popen(["true"])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    pid_file.write_text(text.replace(text.split()[0], str(zombie.pid), 1))
    own.up()
    assert rows(own) == 1
    zombie.wait()


def test_a_frozen_server_is_not_started_twice(own, monkeypatch):
    monkeypatch.setattr("babylon_rl.database.embedded.PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(EmbeddedServer, "_databases", lambda self: None)
    first = postmaster(own)
    with pytest.raises(DatabaseError, match="takes no connections"):
        own.up()
    assert first.is_running() and first.pid == postmaster(own).pid


def test_interrupted_initdb_and_wrong_settings_are_mended_or_said_with_the_log(open_folder):
    server = EmbeddedServer(open_folder / "half")
    (server.home / "data.new").mkdir(parents=True)
    server.home.chmod(0o711)
    (server.home / "data.new" / "PG_VERSION").write_text("18")
    server.up()
    server.down()
    configuration = server.data / "postgresql.conf"
    kept = configuration.read_text()
    configuration.write_text(kept + "\nshared_buffers = nonsense\n")
    with pytest.raises(DatabaseError, match='"shared_buffers"'):
        server.up()
    configuration.write_text(kept)
    (server.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match="PostgreSQL 16"):
        server.up()
    shutil.rmtree(server.home)


def test_a_new_database_is_made_once(own):
    own.create_database("odd name-é")
    own.create_database("odd name-é")
    with psycopg.connect(own.url("odd name-é")) as connection:
        assert connection.info.dbname == "odd name-é"


def test_the_sockets_path_is_short_however_long_the_homes_is(tmp_path):
    deep = tmp_path.joinpath(*["folder" * 5] * 5)
    one, two = EmbeddedServer(deep), EmbeddedServer(deep / "x")
    comma = EmbeddedServer(tmp_path / "a,b")
    for server in (one, two, comma):
        assert len(str(server.socket_folder)) <= LONGEST_SOCKET_FOLDER and "," not in str(server.socket_folder)
    assert one.socket_folder != two.socket_folder and EmbeddedServer(deep).socket_folder == one.socket_folder


def test_programs_that_the_servers_user_cannot_reach_are_copied_once_and_serve(open_folder, monkeypatch):
    """A clone in a private folder: seen here by a wheel that the server's user cannot run."""
    server = EmbeddedServer(open_folder / "copied")
    real = binaries._runs
    monkeypatch.setattr(
        binaries, "_runs", lambda folder, user: folder.is_relative_to(server.home) and real(folder, user)
    )
    server.up()
    server.down()
    (copies,) = server.home.glob("postgresql-*")
    made = copies.stat().st_ino
    server.up()
    assert str(copies) in postmaster(server).exe() and copies.stat().st_ino == made
    server.down()
    shutil.rmtree(server.home)


@pytest.mark.skipif(os.geteuid() != 0, reason="a normal user's server runs as that user")
def test_root_is_told_of_a_home_that_the_servers_user_cannot_enter(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(DatabaseError, match="BABYLON_RL_DATABASE_HOME"):
        EmbeddedServer(tmp_path / "home").up()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_normal_user_runs_it_as_himself_and_root_finds_it(open_folder):
    folder = open_folder / "of-a-user"
    folder.mkdir()
    user = pwd.getpwnam("daemon")
    os.chown(folder, user.pw_uid, user.pw_gid)
    server = EmbeddedServer(folder / "home")
    try:
        binaries.installation(folder, user).relative_to(folder)
        pytest.skip("another user cannot enter the environment")
    except ValueError:
        pass
    # A fork, as another user may not be able to start this Python.
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            server.up()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert postmaster(server).uids().real == user.pw_uid == server.data.stat().st_uid
    EmbeddedServer(server.home).up()
    server.down()
    assert not server.running()


def test_the_home_is_the_one_set_or_one_for_the_user(tmp_path):
    assert default_home(Settings(database_home=tmp_path / "mine")) == tmp_path / "mine"
    chosen = default_home(Settings(home=tmp_path))
    if os.geteuid() == 0:
        assert not chosen.is_relative_to(tmp_path) and chosen != default_home(Settings(home=tmp_path / "other"))
    else:
        assert chosen == tmp_path / "postgres"


def test_an_interrupted_process_does_not_take_the_server_with_it(own):
    """Ctrl-C goes to the whole foreground group; the server is in a session of its own."""
    own.down()
    program = UP + "; import os, signal; os.killpg(0, signal.SIGINT)"
    interrupted = subprocess.run(
        [sys.executable, "-c", program, str(own.home)], cwd=REPOSITORY, start_new_session=True, capture_output=True
    )
    assert interrupted.returncode == -signal.SIGINT
    assert rows(own) == 1
