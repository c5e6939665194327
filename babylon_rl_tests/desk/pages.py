"""Pages of the UI as a person opens them in Debian's chromium, ready to be read, and pictures of them."""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Locator, Page, TimeoutError, sync_playwright

from babylon_rl.settings import REPOSITORY

PATIENCE_MS = 60_000
MOST_BYTES = 200_000  # of a picture in the repository
SMALL = {"width": 1200, "height": 720}
TALL = {"width": 1200, "height": 1000}
WIDE = {"width": 2800, "height": 900}
GRAPH: FloatRect = {"x": 590, "y": 270, "width": 2160, "height": 520}  # of the wide page, what is drawn


def chromium() -> str | None:
    """Debian's chromium; Playwright downloads none."""
    return shutil.which("chromium")


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root chromium has no sandbox; it opens nothing but the desk's pages.
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def page_of(opened: Browser) -> Iterator[Page]:
    page = opened.new_page(viewport=SMALL)
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()


def open_graph(page: Page, url: str) -> None:
    """The asset graph with every group open."""
    groups = ",".join(f"global@global:{group}" for group in ("recordings", "data", "models"))
    # In a narrow window the boxes have no room for the names.
    page.set_viewport_size(WIDE)
    page.goto(f"{url}/asset-groups?expanded={groups}")
    page.get_by_text("checkpoint_evaluations", exact=True).locator("visible=true").first.wait_for()


def open_partition(page: Page, url: str, asset: str, window_id: str) -> None:
    """An asset's page of one window, with its metadata."""
    page.set_viewport_size(SMALL)
    page.goto(f"{url}/assets/{asset}?view=partitions&partition={window_id}")
    page.get_by_text("Metadata", exact=True).wait_for()


def open_checks(page: Page, url: str, asset: str, check: str) -> None:
    """An asset's checks, one of them chosen, with its last evaluation."""
    page.goto(f"{url}/assets/{asset}?view=checks&checkDetail={check}")
    page.get_by_text("Evaluation result").wait_for()


def drawn_plots(page: Page) -> list[Locator]:
    """Plots of the metadata that are really drawn; where they are behind links, the first that a link opens."""

    def drawn() -> list[Locator]:
        images = page.locator('img[src^="data:image/"]').locator("visible=true")
        try:
            # It comes a moment after what is around it, or not at all.
            images.first.wait_for(timeout=3000)
        except TimeoutError:
            return []
        return [i for i in images.all() if i.evaluate("image => image.decode().then(() => image.naturalWidth)")]

    if found := drawn():
        return found
    for link in page.get_by_text("[Show Markdown]").all():
        link.click()
        page.get_by_role("button", name="Close").wait_for()
        if found := drawn():
            return found
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Close").wait_for(state="hidden")
    return []


def picture(page: Page, path: Path, clip: FloatRect | None = None) -> None:
    """A picture of the page, or of a part, in few colours; AssertionError where it is too large for the repository."""
    # Moves of the graph and of dialogs end; a picture may be a little early, a test never waits for this.
    page.wait_for_timeout(1500)
    image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    # Coverage keeps the few coloured signs, which a median of what is mostly grey loses.
    image = image.quantize(200, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    assert path.stat().st_size <= MOST_BYTES, f"{path} has {path.stat().st_size} bytes"


def show_metadata(page: Page, plots: int) -> None:
    """Bring the metadata with its first plots into sight, where it is read without moving the page."""
    page.set_viewport_size(TALL)
    page.get_by_text("Hide navigation", exact=True).click()
    page.get_by_text("Metadata", exact=True).evaluate("heading => heading.scrollIntoView()")
    assert len(drawn_plots(page)) >= plots


def main(url: str, window_id: str, update: str, folder: Path = REPOSITORY / "docs" / "img") -> None:
    """Pictures of the pages of an open desk, for the README: graph, a window's agents, an update's curves, a check.

    `update`: the window that an update ended with.
    """
    with browser() as opened, page_of(opened) as page:
        open_graph(page, url)
        picture(page, folder / "dagster-graph.png", GRAPH)
        open_partition(page, url, "scored_trajectories", window_id)
        show_metadata(page, 1)
        picture(page, folder / "dagster-window.png")
    with browser() as opened, page_of(opened) as page:
        open_partition(page, url, "trained_checkpoints", update)
        show_metadata(page, 1)
        picture(page, folder / "dagster-checkpoint.png")
    with browser() as opened, page_of(opened) as page:
        open_checks(page, url, "trained_checkpoints", "rows_are_current")
        picture(page, folder / "dagster-check.png")


if __name__ == "__main__":
    main(*sys.argv[1:4])
