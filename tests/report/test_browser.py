"""The report as a reader opens it: from a file, in a real browser, at desk and phone width.

Screenshots stay in pytest's folder; `make test ARGS="tests/report/test_browser.py --basetemp work/screenshots"` says where.
"""

import pytest

from support.browser import Browser

WIDTHS = {"desk": 1280, "phone": 390}

# Boxes of the texts of each plot that leave their plot or cover another text of it, by more than rounding.
_BAD_TEXTS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect(), bad = [];
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  texts.forEach(([name, box], place) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      bad.push(name + ' leaves the plot');
    for (const [other, that] of texts.slice(place + 1)) {
      const across = Math.min(box.right, that.right) - Math.max(box.left, that.left);
      const down = Math.min(box.bottom, that.bottom) - Math.max(box.top, that.top);
      if (across > 2 && down > 0.3 * box.height) bad.push(name + ' covers ' + other);
    }
  });
  return bad;
})
"""
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Words that a narrow column breaks: a cell of one short word (hyphens may break) that takes more than one line.
_BROKEN_WORDS = """
[...document.querySelectorAll('td, thead th')].filter(cell => {
  const range = document.createRange(); range.selectNodeContents(cell);
  return /^[^\\s-]{2,20}$/.test(cell.textContent) && range.getClientRects().length > 1;
}).map(cell => cell.textContent)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def complaints(browser: Browser) -> list[str]:
    """What the console says, and exceptions of scripts."""
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [str(event["params"]) for event in browser.events if event["method"] in kinds]


def requests(browser: Browser) -> list[str]:
    """Addresses that the page asked for."""
    asked = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    return [request["request"]["url"] for request in asked]


@pytest.mark.parametrize("device", WIDTHS)
def test_the_report_opens_without_complaint_request_or_overflow(made, browser, tmp_path, device):
    report = made.path("report.html")
    browser.open(report, WIDTHS[device])
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.run(_OVERFLOW) <= 0
    browser.screenshot(tmp_path / f"{device}.png")
    assert complaints(browser) == []
    assert requests(browser) == [report.resolve().as_uri()]


def test_texts_of_plots_stay_apart_and_words_whole(made, browser):
    for width in WIDTHS.values():
        browser.open(made.path("report.html"), width)
        browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert browser.run("document.querySelectorAll('svg text').length") > 40
        assert browser.run(_BAD_TEXTS) == []
        assert browser.run(_BROKEN_WORDS) == []


@pytest.mark.parametrize("device", WIDTHS)
def test_the_report_of_a_sweep_is_as_tidy(made_sweep, browser, tmp_path, device):
    browser.open(made_sweep.path("report.html"), WIDTHS[device])
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.screenshot(tmp_path / f"{device}.png")
    assert browser.run(_OVERFLOW) <= 0
    assert browser.run("document.querySelectorAll('.fold svg').length") > 10
    assert browser.run(_BAD_TEXTS) == []
    assert browser.run(_BROKEN_WORDS) == []


def test_the_numbers_of_a_plot_are_one_click_away(made, browser):
    browser.open(made.path("report.html"), 390)
    heights = "[...document.querySelectorAll('figure details')].map(one => one.scrollHeight)"
    closed = browser.run(heights)
    browser.run("document.querySelectorAll('figure summary').forEach(one => one.click())")
    assert len(closed) == browser.run("document.querySelectorAll('svg').length")
    assert all(after > before + 50 for before, after in zip(closed, browser.run(heights), strict=True))


def test_faults_of_a_page_are_noticed(browser, tmp_path):
    """The checks above would fail on such a page."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<body><div style='width: 3000px'>wide</div><img src='http://127.0.0.1:9/x.png'><script>oops()</script>"
        "<svg viewBox='0 0 100 100' width='100'><text x='5' y='50'>one</text><text x='9' y='50'>two</text>"
        "<text x='90' y='20'>beyond</text></svg>"
        "<table><td style='width: 20px; overflow-wrap: anywhere; max-width: 20px'>negative</td></table>"
    )
    browser.open(page, 390)
    assert browser.run(_OVERFLOW) > 0
    assert "oops is not defined" in " ".join(complaints(browser))
    assert "http://127.0.0.1:9/x.png" in requests(browser)
    assert browser.run(_BAD_TEXTS) == ["one covers two", "beyond leaves the plot"]
    assert browser.run(_BROKEN_WORDS) == ["negative"]
