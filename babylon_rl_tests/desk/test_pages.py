"""What a person sees in the UI of the started instance, read in a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from babylon_rl.materializing import ASSETS
from babylon_rl_tests.desk.pages import browser, chromium, drawn_plots, open_checks, open_graph, open_partition, page_of
from babylon_rl_tests.desk.started import Desk

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium: `make browser` installs Debian's (as root)")


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(opened: Browser) -> Iterator[Page]:
    with page_of(opened) as page:
        yield page


@pytest.fixture(scope="module")
def trained(desk: Desk, week: list[str]) -> str:
    """A window for which the asset with a check was materialized, and so the check evaluated."""
    assert desk.finished(desk.launch(week[1], ("trained_checkpoints",))) == "SUCCESS"
    return week[1]


def test_the_graph_shows_every_asset_and_nothing_that_asks_for_a_mail_address(page: Page, desk: Desk, backfilled):
    open_graph(page, desk.url)
    for name in ("recorded_trajectories", *ASSETS):
        page.get_by_text(name, exact=True).locator("visible=true").first.wait_for()
    assert not page.get_by_text("Join the Dagster community").count()


def test_a_windows_page_says_that_it_is_materialized_and_what_is_in_it(page: Page, desk: Desk, week, backfilled):
    open_partition(page, desk.url, "windows", week[2])
    page.get_by_role("heading", name=week[2]).or_(page.get_by_text(week[2], exact=True)).first.wait_for()
    page.get_by_text("Materialized", exact=True).first.wait_for()
    assert page.get_by_text("dagster/row_count").count()


def test_a_plot_of_the_metadata_is_really_drawn(page: Page, desk: Desk, week, backfilled):
    open_partition(page, desk.url, "scored_trajectories", week[2])
    plots = drawn_plots(page)
    assert plots
    box = plots[0].bounding_box()
    assert box and box["width"] >= 100 and box["height"] >= 50


def test_a_check_says_what_it_means_and_how_it_ended(page: Page, desk: Desk, trained):
    open_checks(page, desk.url, "trained_checkpoints", "learning_is_steady")
    page.get_by_text("Passed", exact=True).locator("visible=true").first.wait_for()
    page.get_by_text("not one-sided").locator("visible=true").first.wait_for()
