"""The report: what it says of an empty and of a full database, that it is one safe file, and what a browser shows."""

import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import dagster as dg
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.definitions import build_defs
from babylon_rl.reporting.page import render, summary, write_report
from babylon_rl.reporting.state import State, read_state
from babylon_rl.settings import get_settings
from babylon_rl_tests.desk.pages import browser, chromium, page_of
from babylon_rl_tests.reporting.planted import RUN, WHY, plant

NOW = datetime(2025, 1, 18, tzinfo=UTC)
SECTIONS = ("served", "candidate", "evidence", "learning", "pnl", "judge", "rejects", "cost")


@pytest.fixture
def state(database: Database) -> State:
    plant(database)
    return read_state(database, get_settings(), NOW)


def test_a_page_of_an_empty_database_says_for_each_part_how_to_get_it(database: Database):
    page = render(read_state(database, get_settings(), NOW))
    assert all(f'id="{name}"' in page for name in SECTIONS)
    for command in ("promote CHECKPOINT", "experiment start", "evaluate CHECKPOINT", "make demo"):
        assert command in page


def test_the_page_says_what_the_database_holds(state: State):
    page = render(state)
    assert f"<b>{RUN}@1</b>" in page and "refused" in page and "the served log-probabilities differ" in page
    assert f"<b>{RUN}@2</b> against {RUN}@1" in page and "0.800" in page
    assert "+2.00 [+1.00, +3.00]" in page
    assert "no final pnl" in page and "calls without a record" in page
    assert [(row["reason"], row["rows"]) for row in state.rejects] == [("no_final_pnl", 3), ("unfinished", 1)]
    assert state.gaps == 3 and state.windows["ready"] == 60


def test_pnl_is_averaged_over_blocks_of_windows_that_follow_each_other(state: State):
    assert [one.count for one in state.pnl] == [24, 24, 12]
    assert state.pnl[0].label == "2025-01-15T00:00"
    assert state.pnl[0].middle == pytest.approx(sum(n / 20 for n in range(24)) / 24)


def test_costs_are_told_by_the_prices_that_are_set(database: Database, state: State, monkeypatch):
    assert next(one for one in state.costs if "judge" in one.what).dollars is None
    monkeypatch.setenv("BABYLON_RL_JUDGE_PRICES", "0.40/1.60")
    get_settings.cache_clear()
    priced = read_state(database, get_settings(), NOW)
    assert next(one for one in priced.costs if "judge" in one.what).dollars == pytest.approx(0.4 + 0.8)


def test_what_people_and_agents_wrote_is_text_and_never_markup(state: State):
    page = render(state)
    assert WHY not in page and "&lt;script&gt;" in page
    assert "<script" not in page and "&lt;script>" in summary(state)


def test_the_page_fetches_nothing(state: State):
    page = render(state)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.findall(r"url\((?!#)", page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_same_state_is_the_same_page(state: State):
    assert render(state) == render(state)


def test_the_asset_writes_the_page_and_shows_it_in_short(database: Database, tmp_path, monkeypatch):
    plant(database)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    for name, value in database.variables().items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    made = (
        build_defs()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(asset_selection=[dg.AssetKey("loop_report")])
    )
    (event,) = made.asset_materializations_for_node("loop_report")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert event.metadata["served"].value == f"{RUN}@1" and "no_final_pnl" in str(event.metadata["state"].value)


@pytest.mark.skipif(chromium() is None, reason="no chromium: `make browser` installs Debian's (as root)")
def test_a_browser_opens_the_page_and_draws_its_charts(state: State, tmp_path):
    path = write_report(state, tmp_path / "report.html")
    told: list[str] = []
    with browser() as opened, page_of(opened) as page:
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(path.as_uri())
        assert page.title() == "babylon_rl: the state of the loop"
        for name in SECTIONS:
            assert page.locator(f"section#{name} h2").is_visible()
        charts = page.locator("figure svg")
        assert charts.count() == 3  # the sequence, the evidence, P&L
        for chart in charts.all():
            box = chart.bounding_box()
            assert box and box["width"] > 300 and box["height"] > 60
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert told == []
