"""The command line: help, JSON, and a user's mistakes, which get a sentence and no stack trace."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from babylon_rl import cli
from babylon_rl.console import forget_the_applications_variables
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.settings import get_settings

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(server: EmbeddedServer) -> Run:
    """Function that runs the command in a process of its own, as a user starts it, on the session's server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BABYLON_RL_", "DAGSTER_"))}

    def started(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        folders = {"BABYLON_RL_HOME": str(home), "BABYLON_RL_DATABASE_HOME": str(server.home)}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "babylon_rl.cli", *arguments],
            env={**kept, **folders, "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return started


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["db"],
        ["demo"],
        ["play"],
        ["status"],
        ["train"],
        ["serve"],
        ["ui"],
        ["bench"],
        ["bench", "learning"],
        ["outcomes", "sync"],
        ["recording"],
        ["recording", "import"],
        ["windows"],
        ["verify"],
        ["score"],
        ["rescore"],
        ["jobs", "settle"],
        ["checkpoints", "prune"],
        ["lineage"],
        ["forget"],
        ["snapshot", "rebuild"],
        ["settings", "template"],
    ],
)
def test_help_is_there(run, command, tmp_path):
    done = run(*command, "--help", home=tmp_path)
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt(), 130, "Interrupted"), (typer.Exit(1), 1, ""), (typer.Exit(0), 0, ""), (None, 0, "")],
)
def test_the_exit_code_tells_how_a_command_ended(raised, code, said, monkeypatch, capsys):
    made = typer.Typer()

    @made.command()
    def command():
        if raised:
            raise raised

    monkeypatch.setattr(cli, "app", made)
    monkeypatch.setattr(sys, "argv", ["babylon-rl"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == code
    assert said in capsys.readouterr().err


def test_a_command_without_a_subcommand_prints_its_help_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["babylon-rl", "recording"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and "import" in said.out and said.err == ""


UNREACHABLE = "postgresql://nobody:secret-word@127.0.0.1:1/nothing"


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["status", "--database", UNREACHABLE], {}, "127.0.0.1"),
        (["status"], {"BABYLON_RL_SCORER": "alpha", "BABYLON_RL_THREADS": "many"}, "BABYLON_RL_THREADS"),
        (["train", "--from", "2025-01-15T10:30", "--to", "2025-01-15T11:00"], {}, "off the hour"),
        (["train", "--from", "yesterday", "--to", "2025-01-15T11:00"], {}, "is not a window id"),
        (["train", "--from", "2025-01-15T12:00", "--to", "2025-01-15T11:00"], {}, "no window from"),
        (["train", "--from", "2999-01-15T10:00", "--to", "2999-01-15T11:00"], {}, "not over yet"),
        (["train", "--from", "2025-01-15T10:00"], {}, "--follow"),
        (["play", "--windows", "1", "--agents", "2"], {}, "agents"),
        (["bench", "learning", "--seeds", "20-11"], {}, "ends before it begins"),
        (["bench", "learning", "--seeds", "1", "--model", "/nowhere", "--publish"], {}, "--publish"),
        (["nonsense"], {}, "No such command"),
        (["train", "--iterations", "0"], {}, "or equal to 1. `babylon-rl train --help` tells"),
        (["jobs", "settle"], {}, "'ID'. `babylon-rl jobs settle --help` tells"),
    ],
)
def test_a_mistake_gets_a_sentence_and_no_stack_trace(run, arguments, environment, said, tmp_path):
    done = run(*arguments, home=tmp_path, **environment)
    assert done.returncode != 0
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret-word" not in done.stderr + done.stdout


def test_mistakes_that_need_a_database_are_told_too(run, database, tmp_path):
    empty = ["--database", database.url]
    nothing = run("train", "--from", "2025-01-15T10:00", "--to", "2025-01-15T11:00", *empty, home=tmp_path)
    assert "Nothing is recorded" in nothing.stderr and "Traceback" not in nothing.stderr
    unknown = run("serve", "--checkpoint", "nobody@1", *empty, home=tmp_path)
    assert "There is no checkpoint 'nobody@1'" in unknown.stderr and "Traceback" not in unknown.stderr
    missing = run("play", "--model", "no-such-model", "--windows", "1", *empty, home=tmp_path)
    assert "neither smollm2-135m" in missing.stderr and "Traceback" not in missing.stderr
    gone = run("play", "--windows", "1", "--endpoint", "http://127.0.0.1:1/v1", *empty, home=tmp_path)
    assert gone.returncode == 1 and "Traceback" not in gone.stderr and "127.0.0.1:1" in gone.stderr


def test_status_of_an_empty_database_says_so(run, database, tmp_path):
    done = run("status", "--json", "--database", database.url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"promoted": null' in done.stdout


def test_the_demo_asks_no_judge_that_somebody_has_a_key_for(monkeypatch):
    names = ("JUDGE_MODEL", "JUDGE_BASE_URL", "JUDGE_API_KEY")
    for name in names:
        monkeypatch.setenv(name, "theirs")
    forget_the_applications_variables()
    settings = get_settings()
    assert [settings.judge_model, settings.judge_base_url, settings.judge_api_key] == [None] * 3
