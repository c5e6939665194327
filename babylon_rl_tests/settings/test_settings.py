"""Settings: where they come from, which names are refused, what the first system's variables mean."""

import re
from pathlib import Path

import pytest

from babylon_rl.console import APPLICATIONS, forget_the_applications_variables
from babylon_rl.errors import SettingsError
from babylon_rl.settings import ALL_NAMES, REPOSITORY, SECRETS, VARIABLES, get_settings, old_name_notes
from babylon_rl.settings.names import INTERNAL, SETTINGS_FILE
from babylon_rl.settings.template import template


@pytest.fixture
def told(monkeypatch, tmp_path: Path):
    """Function that gives the settings under an environment and, where it is given, a settings file's text."""

    def settings(file: str | None = None, **environment: str):
        if file is not None:
            path = tmp_path / "settings"
            path.write_text(file)
            path.chmod(0o600)
            monkeypatch.setenv(SETTINGS_FILE, str(path))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return get_settings()

    return settings


def test_every_field_has_a_variable_of_its_own_and_a_description():
    assert len(set(VARIABLES.values())) == len(VARIABLES)
    assert all(f"#{name}=" in template() for name in VARIABLES.values())
    assert "None." not in template()


def test_env_template_is_what_the_settings_say():
    assert (REPOSITORY / "env.template").read_text() == template(), "run `make env-template`"


def test_a_copy_of_the_template_changes_nothing_and_may_be_uncommented(told):
    assert told(template()) == told()
    values = re.sub(r"^#([A-Z_]+=)", r"\1", template(), flags=re.MULTILINE)
    assert told(values) == told("")


def test_every_setting_that_a_document_names_is_there():
    documents = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]
    named = {
        (path.name, name) for path in documents for name in re.findall(r"\bBABYLON_RL_[A-Z_]*[A-Z]\b", path.read_text())
    }
    assert len(named) > 30
    assert {name for _, name in named} <= ALL_NAMES | INTERNAL | {SETTINGS_FILE}, named


def test_the_table_in_the_readme_names_settings_only():
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"[A-Z_]{4,}", row)}
    assert len(names) > 20 and names <= ALL_NAMES | {SETTINGS_FILE}


@pytest.mark.parametrize(
    ("file", "environment", "said"),
    [
        (None, {"BABYLON_RL_SCORRER": "alpha"}, "BABYLON_RL_SCORRER .did you mean BABYLON_RL_SCORER"),
        (None, {"babylon_rl_scorrer": "alpha"}, "BABYLON_RL_SCORRER"),
        ("BABYLON_RL_SCORRER=alpha", {}, "Line 1 .* BABYLON_RL_SCORRER .did you mean BABYLON_RL_SCORER"),
        ("\nLEARNING_RATE=1", {}, "Line 2 .* unknown setting LEARNING_RATE"),
        ("BABYLON_RL_SETTINGS_FILE=/other", {}, "unknown setting BABYLON_RL_SETTINGS_FILE"),
        ("MODE=list\nMODE=single", {}, "Line 2 .* a second time"),
        ("what is this?", {}, "is not NAME=value"),
        ("JUDGE_MODEL", {}, "is not NAME=value"),
        ("BABYLON_RL_THREADS=many", {}, "BABYLON_RL_THREADS: Input should be a valid integer"),
        (None, {SETTINGS_FILE: "/nowhere/settings"}, "cannot be read: No such file"),
    ],
)
def test_what_is_unknown_or_cannot_be_read_is_refused(told, file, environment, said):
    with pytest.raises(SettingsError, match=said):
        told(file, **environment)


def test_a_broken_line_is_not_repeated_for_it_may_hold_a_secret(told):
    with pytest.raises(SettingsError) as refused:
        told("JUDGE_API_KEY: word-of-mine")
    assert "word-of-mine" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://me:word-of-mine@host/v1", "https://host/v1?key=word-of-mine"])
def test_an_address_that_each_call_is_recorded_with_holds_no_secret(told, url):
    with pytest.raises(SettingsError, match="BABYLON_RL_UPSTREAM_KEY") as refused:
        told(f"BABYLON_RL_UPSTREAM_URL={url}")
    assert "word-of-mine" not in str(refused.value)
    assert told("BABYLON_RL_UPSTREAM_URL=https://host/v1").upstream_url == "https://host/v1"


def test_the_environment_wins_over_the_file_and_an_empty_value_is_the_default(told):
    file = "BABYLON_RL_SCORER=heuristic\nDATABASE_URL=postgres://file/db\nBABYLON_RL_THREADS=4  # four\n"
    found = told(file, BABYLON_RL_SCORER="ruler", DATABASE_URL="")
    assert (found.scorer, found.application_url, found.threads) == ("ruler", None, 4)


def test_a_file_named_env_is_not_read(told, tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("BABYLON_RL_THREADS=7\n")
    monkeypatch.chdir(tmp_path)
    assert told().threads == 0


@pytest.mark.parametrize(
    ("mode", "line", "warned"),
    [(0o644, "WANDB_API_KEY=k", 1), (0o600, "WANDB_API_KEY=k", 0), (0o644, "WANDB_API_KEY=", 0), (0o644, "MODE=", 0)],
)
def test_a_secret_in_a_file_that_others_can_read_is_warned_of(tmp_path, monkeypatch, caplog, mode, line, warned):
    path = tmp_path / "settings"
    path.write_text(line)
    path.chmod(mode)
    monkeypatch.setenv(SETTINGS_FILE, str(path))
    get_settings.cache_clear()
    get_settings()
    assert len(caplog.records) == warned


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"PROJECT_NAME": "old"}, "wandb_project", "old"),
        ({"PROJECT_NAME": "old", "WANDB_PROJECT": "mine"}, "wandb_project", "mine"),
        ({"MODEL_NAME": "bull"}, "model_name", "bull"),
        ({"TRAIN_RL_LOCAL": "true"}, "training_backend", "torch"),
        ({"TRAIN_RL_LOCAL": "true", "TRAINING_BACKEND": "art-local"}, "training_backend", "art-local"),
        ({"TRAIN_RL_LOCAL": "false"}, "training_backend", "torch"),
        ({"TRAIN_RL_LOCAL": "false", "TRAINING_BACKEND": "wandb"}, "training_backend", "wandb"),
    ],
)
def test_an_old_variable_keeps_its_meaning(told, environment, field, value):
    assert getattr(told(**environment), field) == value


def test_local_training_and_a_backend_elsewhere_contradict_each_other(told):
    for backend in ("wandb", "auto"):
        with pytest.raises(SettingsError, match="Unset one"):
            told(TRAIN_RL_LOCAL="true", TRAINING_BACKEND=backend)
    with pytest.raises(SettingsError, match="neither true nor false"):
        told(TRAIN_RL_LOCAL="maybe", TRAINING_BACKEND="torch")


def test_training_that_is_not_to_be_local_is_told_what_asks_for_the_service(told):
    told(TRAIN_RL_LOCAL="false")
    assert "TRAINING_BACKEND=wandb" in old_name_notes()[0]
    told(TRAIN_RL_LOCAL="true")
    assert not old_name_notes()


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({"JUDGE_MODEL": "m"}, "of-openai"),
        ({}, None),
        ({"JUDGE_MODEL": "m", "JUDGE_API_KEY": "own"}, "own"),
        ({"JUDGE_MODEL": "m", "JUDGE_BASE_URL": "http://127.0.0.1:1/v1"}, None),
        ({"JUDGE_MODEL": "m", "JUDGE_BASE_URL": "http://127.0.0.1:1/v1", "JUDGE_API_KEY": "own"}, "own"),
    ],
)
def test_openais_key_is_the_judges_at_openais_own_endpoint_alone(told, environment, sent):
    key = told(OPENAI_API_KEY="of-openai", **environment).judge_api_key
    assert (key and key.get_secret_value()) == sent


def test_no_secret_is_shown_by_an_error_or_the_object(told):
    keys = {name: f"word-{number}" for number, name in enumerate(sorted(SECRETS))}
    assert "word-" not in repr(told(**keys, JUDGE_MODEL="m")) and len(keys) > 5
    with pytest.raises(SettingsError) as refused:
        told(**keys, BABYLON_RL_MAX_COST="word-9")
    assert "word-" not in str(refused.value)


def test_the_demo_and_the_makefile_ignore_the_same_variables_also_those_in_a_file(told, monkeypatch):
    recipe = (REPOSITORY / "Makefile").read_text()
    assert all(f"-u {name}" in recipe for name in (*APPLICATIONS, SETTINGS_FILE))
    for name in APPLICATIONS:
        monkeypatch.setenv(name, "")  # put back after the test, whatever it makes of them
    told("DATABASE_URL=postgres://theirs/db\nMODEL_NAME=theirs\nBABYLON_RL_THREADS=3\n", MODEL_NAME="theirs")
    forget_the_applications_variables()
    found = get_settings()
    assert (found.application_url, found.model_name, found.threads) == (None, None, 3)
