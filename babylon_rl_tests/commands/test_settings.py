"""`babylon-rl settings`: what is set, by what, and never a secret."""

import json

from babylon_rl.settings import SECRETS
from babylon_rl.settings.names import SETTINGS_FILE


def test_each_setting_is_shown_with_its_origin_and_no_secret(run, tmp_path, monkeypatch):
    monkeypatch.delenv(SETTINGS_FILE, raising=False)
    file = tmp_path / "mine"
    file.write_text("BABYLON_RL_SCORER=heuristic\nPROJECT_NAME=old\n")
    keys = {name: f"postgres://user:hush-{number}@h/d?k=hush" for number, name in enumerate(sorted(SECRETS))}
    done = run("--settings", str(file), "settings", "--json", **keys, JUDGE_BASE_URL="http://u:hush@h:1/v1?key=hush")
    monkeypatch.delenv(SETTINGS_FILE, raising=False)
    assert done.returncode == 0 and "hush" not in done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["BABYLON_RL_SCORER"] == {"value": "heuristic", "origin": str(file)}
    assert found["WANDB_PROJECT"] == {"value": "old", "origin": f"{file}, PROJECT_NAME"}
    assert found["WANDB_API_KEY"] == {"value": "set", "origin": "environment"}
    assert found["JUDGE_BASE_URL"]["value"] == "http://h:1/v1"
    assert found["BABYLON_RL_THREADS"] == {"value": "0", "origin": "default"}


def test_the_table_says_the_same_and_the_template_is_printed(run):
    done = run("settings", JUDGE_API_KEY="hush", TRAIN_RL_LOCAL="false")
    assert "JUDGE_API_KEY" in done.stdout and "hush" not in done.stdout and "not set" in done.stdout
    assert "TRAINING_BACKEND=wandb" in done.stderr
    assert run("settings", "template").stdout.startswith("# Settings of babylon_rl.")


def test_an_unknown_setting_is_a_sentence_with_the_name_that_was_meant(run):
    done = run("settings", BABYLON_RL_SCORRER="alpha")
    assert done.returncode == 2 and "did you mean BABYLON_RL_SCORER?" in done.stderr
