"""The page of a server, as people use it: in a real browser, by keyboard, at desk and phone width."""

import json
import time

import pytest

from support.browser import Browser
from support.onnx_samples import LABELS, TEXTS
from support.served import package_models, serving

WIDTHS = {"desk": 1280, "phone": 390}
# What a screen reader is told of each control: its accessible name must not be empty.
_NAMELESS = """
[...document.querySelectorAll('input, select, textarea, button, progress')].filter(one =>
  !(one.labels && one.labels.length) && !one.getAttribute('aria-label') && !one.textContent.trim()).map(one => one.outerHTML)
"""


@pytest.fixture(scope="module")
def server(tiny_phi3, tmp_path_factory):
    with serving(package_models(tmp_path_factory.mktemp("served"), tiny_phi3)) as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, server):
    browser.open(f"{server.url}/", WIDTHS[request.param])
    wait(browser, "document.querySelectorAll('#columns textarea').length == 1")
    return request.param


def wait(browser: Browser, condition: str) -> None:
    for _ in range(300):
        if browser.run(condition):
            return
        time.sleep(0.1)
    raise AssertionError(f"{condition} stays false: {browser.run('document.body.innerText')}")


def type_text(browser: Browser, selector: str, text: str) -> None:
    browser.run(f"document.querySelector({json.dumps(selector)}).focus()")
    browser.call("Input.insertText", text=text)


def press(browser: Browser, key: str, code: int) -> None:
    more = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)


def complaints(browser: Browser) -> list[str]:
    kinds = ("Log.entryAdded", "Runtime.exceptionThrown")
    return [str(event["params"]) for event in browser.events if event["method"] in kinds]


def test_a_text_is_answered_with_bars_by_keyboard_alone(page, browser, server, tmp_path):
    type_text(browser, "#columns textarea", TEXTS[0])
    press(browser, "Tab", 9)
    assert browser.run("document.activeElement.textContent") == "Ask"
    press(browser, "Enter", 13)
    wait(browser, "document.querySelectorAll('.bars li').length == 4")
    assert set(
        browser.run("[...document.querySelectorAll('.bars li span:first-child')].map(one => one.textContent)")
    ) == {*LABELS}
    said = browser.run("document.querySelector('.said').textContent")
    assert said in (*LABELS, "unsure")
    browser.screenshot(tmp_path / f"{page}.png")
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert browser.run(_NAMELESS) == []
    assert complaints(browser) == []
    asked = [one["params"]["request"]["url"] for one in browser.events if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(server.url)] == []


def test_two_models_answer_side_by_side(page, browser):
    browser.run("document.querySelector('#second').value = 'free'")
    type_text(browser, "#columns textarea", TEXTS[1])
    browser.run("document.querySelector('#ask button').click()")
    wait(browser, "document.querySelectorAll('.answer').length == 2")
    wait(browser, "[...document.querySelectorAll('.said')].every(one => one.textContent)")
    assert browser.run("[...document.querySelectorAll('.answer h3')].map(one => one.textContent)") == ["tones", "free"]


def test_what_is_refused_is_said(page, browser):
    type_text(browser, "#columns textarea", "a <|end|> b")
    browser.run("document.querySelector('#ask button').click()")
    wait(browser, "document.querySelector('#error').textContent.includes('control token')")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,other\n"He cried, and laughed",1\nNobody had told him.,2\n'),
        ("rows.jsonl", '{"text": "He cried, and laughed"}\n{"text": "Nobody had told him."}\n'),
        ("", "He cried, and laughed\nNobody had told him.\n"),
    ],
)
def test_many_inputs_are_answered_and_can_be_saved(page, browser, name, content):
    if name:
        given = f"new File([{json.dumps(content)}], {json.dumps(name)})"
        browser.run(f"(() => {{ const data = new DataTransfer(); data.items.add({given});"
                    " document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data})); })()")  # fmt: skip
        wait(browser, "document.querySelector('#done').textContent.includes('ready')")
    else:
        browser.run(f"document.querySelector('#lines').value = {json.dumps(content)}")
    browser.run("document.querySelector('#run').click()")
    wait(browser, "document.querySelector('#done').textContent == '2 of 2 answered'")
    wait(browser, "!document.querySelector('#save').hidden")
    answers = [json.loads(line) for line in browser.run("saved").splitlines()]
    assert [one["input"]["text"] for one in answers] == ["He cried, and laughed", "Nobody had told him."]
    assert all(set(one["probabilities"]) == {*LABELS} for one in answers)
