"""Publishing out of Dagster's runs: what it came to is shown, and its failure costs nothing."""

import dagster as dg
import pytest
import sqlalchemy as sa

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.settings import get_settings
from babylon_rl_tests.defs.ranges import materialize
from babylon_rl_tests.defs.test_promotion import promote
from babylon_rl_tests.training.rounds import OpenRun, window


@pytest.fixture
def trained(database, tmp_path) -> str:
    """A checkpoint of a run without an end, its update made."""
    opened = OpenRun(database, tmp_path)
    opened.play(0, 1)
    opened.compute(window(0), window(1))
    return next(iter(opened.checkpoints()))


def configure(monkeypatch, url: str) -> None:
    monkeypatch.setenv("BABYLON_RL_PUBLISH_URL", url)
    get_settings.cache_clear()


def metadata_of(result: dg.ExecuteInProcessResult, node: str) -> dict:
    (event,) = [e for e in result.events_for_node(node) if e.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_a_promotion_and_an_hour_of_training_publish_and_say_so(database, instance, new_database, trained, monkeypatch):
    application = new_database(embedded=False)
    application_metadata.create_all(application.engine())
    configure(monkeypatch, application.url)
    result = materialize(database, instance, {"dagster/partition": window(2)}, ["trained_checkpoints"])
    assert result.success and metadata_of(result, "trained_checkpoints")["published"] == 2
    question = sa.text('SELECT "modelId", status FROM trained_models')
    with application.engine().connect() as connection:
        assert connection.execute(question).all() == [(trained, "ready")]
    shown = metadata_of(promote(database, instance, trained, despite_evidence=True), "promote")
    assert shown["published"] == 1 and shown["served"] == f"nothing -> {trained}"
    with application.engine().connect() as connection:
        assert connection.execute(question).all() == [(trained, "deployed")]


def test_what_cannot_be_published_fails_nothing_and_is_shown(database, instance, new_database, trained, monkeypatch):
    configure(monkeypatch, new_database(embedded=False).url)
    result = materialize(database, instance, {"dagster/partition": window(2)}, ["trained_checkpoints"])
    shown = metadata_of(result, "trained_checkpoints")
    assert result.success and shown["published"] == 0 and "BABYLON_RL_PUBLISH_URL" in shown["not published"]
    shown = metadata_of(promote(database, instance, trained, despite_evidence=True), "promote")
    assert shown["served"] == f"nothing -> {trained}" and "Nothing was published" in shown["not published"]


def test_without_the_variable_nothing_is_said_of_it(database, instance, trained):
    shown = metadata_of(promote(database, instance, trained, despite_evidence=True), "promote")
    assert not [name for name in shown if "publish" in name]
