"""The page as a browser shows it: Chromium, headless, its own or the system's."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not opened in a browser")


@pytest.fixture
def page(page_file):
    """The page, opened. page.heard: what it logged, threw or fetched."""
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium here: {error}")
        page, page.heard = browser.new_page(color_scheme="light"), []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("request", lambda request: page.heard.append(request.url))
        page.goto(page_file.as_uri())
        yield page
        browser.close()


def background(page, selector):
    return page.locator(selector).first.evaluate("element => getComputedStyle(element).backgroundColor")


def test_it_opens_without_a_request_or_an_error(page, page_file):
    assert page.heard == [page_file.as_uri()]
    assert page.locator("#samples tr:visible").count() == 5
    assert page.inner_text("#samples tr:nth-child(2) pre").startswith("<|im_start|>user↵\nWrite <script>alert(1)")


def test_the_filter_shows_the_samples_that_contain_its_words(page):
    page.fill("#filter", "APPLES")
    assert page.locator("#samples tr:visible").count() == 1
    page.fill("#filter", "no such words")
    assert page.locator("#samples tr:visible").count() == 0
    page.fill("#filter", "")
    assert page.locator("#samples tr:visible").count() == 5


def test_what_trains_is_seen_by_day_and_by_night(page):
    nothing = "rgba(0, 0, 0, 0)"
    by_day = background(page, "i.t")
    assert by_day != nothing and background(page, "i:not(.t)") == nothing
    page.emulate_media(color_scheme="dark")
    assert background(page, "i.t") not in (by_day, nothing)


def test_the_numbers_are_drawn_once_and_fit_a_narrow_window(page):
    assert "█" not in page.inner_text("body")
    widths = (
        page.locator("svg")
        .first.locator("rect")
        .evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    )
    assert max(widths) > 100, "bars have a size"
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
