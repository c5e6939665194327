"""Playing for the command line: what simulated agents are recorded into."""

from typer.testing import CliRunner

from babylon_rl import playing
from babylon_rl.cli import app
from babylon_rl.settings import Settings, get_settings


def test_simulated_agents_leave_the_applications_database_alone(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://reader@application/babylon")
    monkeypatch.setenv("BABYLON_RL_DATABASE_URL", "postgres://trainer@ours/babylon_rl")
    get_settings.cache_clear()
    assert get_settings().application_url is not None
    asked: list[Settings] = []
    monkeypatch.setattr(playing, "play_command", lambda settings, *_: asked.append(settings) or "played")
    assert CliRunner().invoke(app, ["play"]).exit_code == 0
    assert asked[0].application_url is None and "@ours/" in asked[0].database_url.get_secret_value()
