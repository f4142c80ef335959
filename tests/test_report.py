"""The report of a made-up run: well-formed, self-contained, escaped, and saying what the numbers say."""

import re
from html.parser import HTMLParser

import pytest
from made_run import NASTY

from lib import findings, plots

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects text, links and ids, and notes tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.faults, self.words, self.ids, self.attributes = [], [], [], [], []
        self.tags: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def html(made) -> str:
    return made.path("report.html").read_text()


@pytest.fixture
def page(html) -> Page:
    return Page(html)


def test_page_is_well_formed_and_its_links_lead_somewhere(page):
    assert not page.faults
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    links = [value for tag, key, value in page.attributes if tag == "a" and key == "href"]
    assert len(links) == 10
    assert all(link.removeprefix("#") in page.ids for link in links)


def test_page_needs_nothing_from_outside(html, page):
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"""(src|href|url|@import)\s*[=(]\s*["']?(?!["'#])""", html)
    assert "http" not in html.replace("http://url_removed", "")  # that one is text of a row


def test_values_are_text_and_not_markup(made, html, page):
    assert "<script" not in html
    assert "<b>" not in html
    assert NASTY in page.text  # with its braces: the row is shown, not interpreted
    assert (made.task == "generation") == ("&lt;b&gt;?" in html)


def test_headline_numbers_are_there_and_in_order(made, page):
    summary = made.read("summary.json")
    model, selected = summary["model"], summary["selected"]
    main = findings.MAIN_METRIC[made.task]
    head = page.text.split("Is it worth it?")[0]
    for value in (
        findings.metric(main, model["test"][main]),
        findings.interval(main, model["test"]),
        findings.number(model["size_mb"], 1),
        findings.number(model["tokens_per_second"], 1),
        f"Variant {selected['variant']} of run {selected['run']} was chosen",
    ):
        assert value in head
    verdict = "and passed the gate." if made.task == "classification" else "but failed the gate: chrF."
    assert verdict in head
    titles = ["worth", "sure", "stages", "selection", "errors", "training", "data", "time", "settings", "hashes"]
    assert [id_ for id_ in page.ids if not id_.endswith("-title")] == titles


def test_reasons_hashes_settings_and_times_are_there(made, page):
    selection = made.read("selection.json")
    for one in selection["rejected"]:
        assert one["reason"] in page.text
    assert "lora/cuda-int4" in page.text
    assert "base_model.package.sha256" in page.text
    assert "set aside: exact duplicate" in page.text
    for path in ("base.manifest.json", "model.manifest.json"):
        assert findings_sha(made, path) in page.text
    assert re.search(r"score_onnx 2 80\.8 11\.0\s% 410", page.text)  # two jobs: 30.5 and 50.25 s, 400 and 410.5 MB
    assert re.search(r"check_gate 1 0\.2 0\.0\s% –", page.text)


def findings_sha(made, path) -> str:
    from lib.files import sha256_file

    return sha256_file(made.path(path))


def test_plots_and_tables_have_names_for_those_who_do_not_see_them(page):
    figures = [value for tag, key, value in page.attributes if tag == "svg" and key == "aria-label"]
    assert len(figures) == page.tags.count("svg") >= 4
    assert page.tags.count("caption") == page.tags.count("table")


def test_confusion_and_errors(made, page):
    if made.task == "generation":
        assert "answers furthest from their reference, of 40" in page.text
        return
    score = made.read("scores/model.test.json")
    wrong = sum(map(sum, score["confusion"])) - sum(score["confusion"][place][place] for place in range(3))
    assert f"{wrong} of 220 test rows get a wrong label." in page.text
    first = " ".join(str(count) for count in score["confusion"][0])
    assert f"negative {first}" in page.text
    errors = page.text.split("errors that the model was surest of")[1].split("How did it learn?")[0]
    assert errors.count("test ") <= 20


def test_rows_of_another_corpus_are_refused(made, tmp_path):
    run = made.copied(tmp_path / "run")
    rows = run.path("corpus/test.jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    run.path("report.html").unlink()
    done = run.write_report(check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: corpus/test.jsonl: these are not the rows of")
    assert not run.path("report.html").exists()


def quality(wins: int, losses: int, p: float, n: int = 200) -> dict:
    against = {"name": "merged", "wins": wins, "losses": losses, "mcnemar_p": p}
    return {"n": n, "flips": wins + losses, "kl": 0.01, "against": against}


@pytest.mark.parametrize(
    ("wins", "losses", "p", "expected"),
    [
        (40, 5, 0.00001, "gains between 1"),
        (5, 40, 0.00001, "costs between 1"),
        (5, 6, 1.0, "so no difference is shown (p = 1.000)"),
        (0, 3, 0.25, "costs between +0.0 and +3."),
        (0, 0, 1.0, "no row turns right or wrong"),
    ],
)
def test_the_sentence_about_a_stage_follows_its_numbers(wins, losses, p, expected):
    sentence = findings.stage_cost("classification", "int4", quality(wins, losses, p), seed=0, samples=500)
    assert expected in sentence
    assert sentence.startswith("int4 against merged: ")


@pytest.mark.parametrize(
    ("wins", "losses", "p", "expected"),
    [
        (60, 20, 0.001, "so it is better than TF-IDF + logistic regression"),
        (30, 20, 0.20, "so it is not shown to be better than TF-IDF"),
        (20, 60, 0.001, "so it is worse than TF-IDF"),
    ],
)
def test_the_sentence_about_the_baseline_follows_its_numbers(wins, losses, p, expected):
    test = {"accuracy": 0.8, **quality(wins, losses, p)}
    summary = {
        "model": {"test": test},
        "baselines": {"tfidf_logreg": {"test": {"accuracy": 0.7}}, "keyword": {"test": {"accuracy": 0.85}}},
        "base": {"test": {"accuracy": 0.4}},
    }
    text = " ".join(findings.worth_it("classification", summary, 0))
    assert expected in text
    assert "Even simpler baselines score higher: label word in text (0.850)." in text


def test_ticks_are_round_and_enclose_the_data():
    assert plots.nice_ticks(0.13, 0.92) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert plots.nice_ticks(0, 137) == [0, 50, 100, 150]
    same = plots.nice_ticks(0.8, 0.8)
    assert same[0] < 0.8 < same[-1]


def test_names_in_a_plot_are_escaped_and_keep_apart():
    points = [plots.Point(name, 100, 0.5, (0.4, 0.6), False) for name in ("<a>", "b & c")]
    svg = plots.scatter(points, "size", "accuracy")
    assert "&lt;a&gt;" in svg
    assert "b &amp; c" in svg
    heights = re.findall(r'class="halo" x="[\d.]+" y="([\d.]+)"', svg)
    assert abs(float(heights[0]) - float(heights[1])) >= 15
