"""The report of a made-up run: well-formed, self-contained, escaped, and saying what the numbers say."""

import itertools
import random
import re
import shutil
from html.parser import HTMLParser

import pytest

from lib.core.files import hash_file
from lib.evaluation.registry import MAIN_METRIC
from lib.provenance.code_closure import find_code_closure
from lib.report import findings, formatting, plots, timings
from lib.report.evidence import SHOWN, Evidence
from support.made_run import NASTY
from support.paths import SCRIPTS

QUESTIONS = {
    "model": "Which model?",
    "worth": "Is it worth it against the baselines?",
    "sure": "How sure is that?",
    "quantization": "What did quantization cost?",
    "errors": "What does it get wrong?",
    "probabilities": "Can its probabilities be acted on?",
    "data": "What is wrong with the data?",
    "time": "How long did it take, and how big is it?",
    "bytes": "From which bytes?",
}


def questions_of(made) -> dict[str, str]:
    """Free answers have no probabilities."""
    return {id_: one for id_, one in QUESTIONS.items() if made.task == "classification" or id_ != "probabilities"}


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


@pytest.fixture
def sweep_html(made_sweep) -> str:
    return made_sweep.path("report.html").read_text()


def test_page_is_well_formed_and_its_links_lead_somewhere(page, sweep_html):
    for one in (page, Page(sweep_html)):
        check_well_formed(one)


def check_well_formed(page: Page) -> None:
    assert not page.faults
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    links = [value for tag, key, value in page.attributes if tag == "a" and key == "href"]
    assert len(links) in (len(QUESTIONS), len(QUESTIONS) - 1)  # free answers have no probabilities
    assert all(link.removeprefix("#") in page.ids for link in links)


def test_page_needs_nothing_from_outside(html, page):
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"""(src|href|url|@import)\s*[=(]\s*["']?(?!["'#])""", html)
    assert "://" not in html.replace("http://url_removed", "")  # that one is text of a row


def test_values_are_text_and_not_markup(made, html, page):
    assert "<script" not in html
    assert "<b>" not in html
    assert NASTY in page.text  # with its braces: the row is shown, not interpreted
    assert (made.task == "generation") == ("&lt;b&gt;?" in html)


def test_the_head_says_whether_to_ship_and_has_the_numbers(made, page):
    summary = made.read("summary.json")
    model = summary["model"]
    main = MAIN_METRIC[made.task]
    head = page.text.split(QUESTIONS["model"])[0]
    for value in (
        formatting.format_metric(main, model["test"][main]),
        formatting.format_interval(main, model["test"]),
        formatting.format_number(model["size_mb"], 1),
        formatting.format_number(model["tokens_per_second"], 1),
        summary["verdict"]["text"],
    ):
        assert value in head
    if made.task == "generation":
        assert "of run lora: it fails the gate on chrF" in head


def test_the_questions_are_asked_in_order_and_each_is_answered_first(made, html, page):
    assert [id_ for id_ in page.ids if not id_.endswith("-title") and id_ != "hatch"] == list(questions_of(made))
    for id_, question in questions_of(made).items():
        answer = re.search(rf'<h2 id="{id_}-title">(.*?)</h2>\s*<p class="answer">(.+?)</p>', html)
        assert answer, id_
        assert answer[1] == question
        assert answer[2].endswith(".")


def test_reasons_hashes_and_settings_are_there(made, page):
    selection = made.read("selection.json")
    for one in selection["rejected"]:
        assert one["reason"] in page.text
    assert "lora/cuda-int4" in page.text
    assert "base_model.package.sha256" in page.text
    assert "set aside: exact duplicate" in page.text
    for path in ("base.manifest.json", "model.manifest.json"):
        assert hash_file(made.path(path)) in page.text
    assert "own tokenizer reads 3 of 520 rows otherwise than the model was trained: predict.py does not" in page.text


def test_every_manifest_of_a_sweep_is_in_the_report_as_the_data_goes(made_sweep, sweep_html):
    shown = re.findall(r"[\w/.-]+\.manifest\.json", Page(sweep_html).text)
    there = {path.relative_to(made_sweep.folder).as_posix() for path in made_sweep.folder.rglob("*.manifest.json")}
    assert set(shown) == there
    assert (shown[0], shown[len(there) - 1]) == ("base.manifest.json", "model.manifest.json")
    assert shown.index("runs/qlora/merged-original.manifest.json") < shown.index("runs/qlora/merged.manifest.json")


def test_every_variant_of_a_sweep_has_its_reason_and_its_numbers(made_sweep, sweep_html):
    text = Page(sweep_html).text
    for one in made_sweep.read("summary.json")["selected"]["candidates"]:
        assert one["reason"] in text
        if one["value"] is not None:
            assert f"{one['run']}/{one['variant']} {one['value']:.3f} {one['value_ci95'][0]:.3f} to" in text


def test_the_plot_of_many_variants_shows_the_best_and_says_so(made_sweep, sweep_html):
    (svg,) = re.findall(r"<svg[^>]*aria-label=\"Macro-F1 against size in MB.*?</svg>", sweep_html, flags=re.DOTALL)
    candidates = [one for one in made_sweep.read("summary.json")["selected"]["candidates"] if one["value"] is not None]
    assert svg.count('<circle class="filled"') == sum(one["pareto"] for one in candidates)
    assert svg.count('<circle class="filled"') + svg.count('<circle class="hollow"') == SHOWN == 12
    assert svg.count('<circle class="ring"') == 1
    assert f"Shown are 12 of {len(candidates)}" in sweep_html
    best = max(candidates, key=lambda one: one["value"])
    assert f"{best['run']}/{best['variant']}" in svg


def test_the_ranking_of_a_sweep_is_there_with_its_sentence(made_sweep, sweep_html):
    ranking, text = made_sweep.read("summary.json")["ranking"], Page(sweep_html).text
    assert findings.describe_ranking("macro_f1", ranking) in text
    for one in ranking:
        shown = f"{one['group']}/{one['variant']} {len(one['seeds'])} {one['mean']:.3f} {'–' if one['sd'] is None else format(one['sd'], '.3f')}"
        assert shown in text


def test_a_sampled_sweep_says_what_further_runs_would_be_worth(sweep_html, html):
    text = Page(sweep_html).text
    assert "The 10 runs are a random sample of the 12 of the grid. With a chance of at most 16.7" in text
    assert re.search(r"On average they raise the best by at most \d\.\d points of macro-F1 \(95 % interval", text)
    assert "random sample" not in html


def test_of_many_runs_only_the_chosen_one_is_open(made_sweep, sweep_html):
    summary = made_sweep.read("summary.json")
    section = sweep_html.split('<section id="quantization"')[1].split("</section>")[0]
    folded = re.findall(r'<details class="fold"><summary>Run (.*?)</summary>', section)
    assert sorted([*folded, summary["selected"]["run"]]) == sorted(summary["runs"])
    assert section.index(f"Run {summary['selected']['run']}: quality") < section.index('class="fold"')


def test_runs_that_were_not_trained_have_no_learning_curve(sweep_html):
    text = Page(sweep_html).text
    not_trained = re.search(r"Not trained here: (.*?)\.", text)[1]
    assert sorted(re.split(r", | and ", not_trained)) == ["base", "given-adapter", "given-merged"]
    assert "Run qlora: validation macro-F1 is highest, 0.760, at step 200 of 210; that checkpoint was kept" in text
    assert "Run lora-r-8-seed-1: validation loss is lowest, 0.4857, at step 150 of 210" in text  # no best_by in it
    assert sweep_html.count('aria-label="Macro-F1 by step"') == 6
    assert sweep_html.count('aria-label="loss by step"') == 7


def test_what_the_choice_of_merge_was_worth_is_said(made_sweep, sweep_html):
    merge = made_sweep.read("summary.json")["runs"]["qlora"]["merge"]
    assert findings.merge_choice("qlora", merge) in Page(sweep_html).text


def test_of_very_many_runs_the_chosen_one_and_the_best_are_shown():
    runs = {f"run-{number}": {} for number in range(40)}
    candidates = [{"run": name, "value": int(name[4:]) / 100} for name in runs]
    selected = {"run": "run-3", "variant": "int4", "candidates": candidates}
    others = dict.fromkeys(
        (
            "metric",
            "audit",
            "split",
            "leakage",
            "baselines",
            "training",
            "score",
            "examples",
            "jobs",
            "manifests",
            "card",
        )
    )
    evidence = Evidence(settings={"task": "classification"}, summary={"runs": runs, "selected": selected}, **others)
    assert list(evidence.shown_runs) == ["run-3", *(f"run-{number}" for number in range(39, 39 - SHOWN + 1, -1))]
    assert [evidence.is_folded(name) for name in ("run-3", "run-39")] == [False, True]


def test_the_page_says_where_the_minutes_went(page):
    # two jobs: 30.5 and 50.25 s, 400 and 410.5 MB; the logs say a tenth start-up and eight tenths work
    assert re.search(r"score_onnx 2 8\.1 64\.6 8\.1 80\.8 11\.0\s% 410", page.text)
    assert re.search(r"check_gate 1 0\.0 0\.2 0\.0 0\.2 0\.0\s% –", page.text)
    assert re.search(r"all 4 73\.3 586\.\d 73\.\d 733\.3 100\.0\s%", page.text)
    assert "the run took 12.3 minutes: for 12.2 minutes jobs ran, for 4 s none did" in page.text
    assert "It was made in 2 sessions: pauses of more than 5 minutes, 60.0 minutes in all" in page.text


def test_old_logs_without_times_leave_dashes(made, tmp_path):
    run = made.copied(tmp_path / "run")
    run.path("logs/train_adapter/lora.txt").write_text("an old log\n")
    run.path("logs/check_gate/log.txt").unlink()
    run.write_report()
    text = Page(run.path("report.html").read_text()).text
    assert re.search(r"train_adapter 1 – – – 652\.3", text)
    assert re.search(r"score_onnx 2 8\.1 64\.6", text)
    assert "The logs of 2 of 4 jobs do not say when they started" in text
    shutil.rmtree(run.path("timings"))
    run.write_report()
    assert "No timings were kept; the model has 92 MB" in Page(run.path("report.html").read_text()).text


def test_an_old_report_is_not_a_job_of_this_one(made):
    jobs = timings.read_jobs(made.path("timings"), made.path("logs"))
    assert len(jobs) == 4
    old = made.path("timings/write_report/time.tsv")
    old.parent.mkdir(exist_ok=True)
    old.write_text(made.path("timings/check_gate/time.tsv").read_text())
    assert timings.read_jobs(made.path("timings"), made.path("logs")) == jobs


def test_jobs_side_by_side_count_once_in_the_time_of_the_run():
    jobs = [timings.Job("a", 10, None, 100.0), timings.Job("b", 4, None, 103.0), timings.Job("c", 5, None, 108.0)]
    found = timings.sum_whole_run(jobs)
    assert (found.busy, found.between, list(found.breaks)) == (13, 0, [])
    apart = timings.sum_whole_run([*jobs, timings.Job("d", 1, None, 120.0), timings.Job("e", 1, None, 1000.0)])
    assert (apart.busy, apart.between, list(apart.breaks)) == (15, 7, [879])


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
    assert re.search(rf"{wrong} of 220 test rows \([\d.]+\s%\) get a wrong label, most often", page.text)
    first = " ".join(str(count) for count in score["confusion"][0])
    assert f"negative {first}" in page.text
    errors = page.text.split("errors that the model was surest of")[1].split(QUESTIONS["probabilities"])[0]
    assert errors.count("test ") <= 20


def test_labels_that_differ_by_case_are_told(made, page):
    told = 'case or width alone are labels of their own here: "positive" (30 rows) and "Positive" (2 rows).'
    assert (told in page.text.split(QUESTIONS["data"])[-1]) == (made.task == "classification")


def test_rows_of_another_corpus_are_refused(made, tmp_path):
    run = made.copied(tmp_path / "run")
    rows = run.path("corpus/test.jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    run.path("report.html").unlink()
    done = run.write_report(check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: corpus/test.jsonl: these are not the rows of")
    assert not run.path("report.html").exists()


def against(wins: int, losses: int, p: float, name: str = "merged", n: int = 200) -> dict:
    """A comparison of accuracies with an interval of the width that theory gives."""
    middle = (wins - losses) / n
    half = 1.96 * ((wins + losses) / n - middle**2) ** 0.5 / n**0.5
    return {
        "name": name,
        "wins": wins,
        "losses": losses,
        "mcnemar_p": p,
        "rows_needed": None if wins == losses else 321,
        "difference": {"accuracy": middle, "macro_f1": middle},
        "difference_ci95": {key: [middle - half, middle + half] for key in ("accuracy", "macro_f1")},
    }


@pytest.mark.parametrize(
    ("wins", "losses", "p", "expected"),
    [
        (40, 5, 0.00001, "gains between 11.4 and 23.6 points of accuracy (p\u00a0<\u00a00.001)"),
        (5, 40, 0.00001, "costs between 11.4 and 23.6 points of accuracy"),
        (5, 6, 1.0, "costs between -2.7 and +3.7 points of accuracy, so no difference is shown (p\u00a0=\u00a01.000)"),
        (2, 9, 0.06, "costs between +0.3 and +6.7 points of accuracy, which the paired test does not confirm (p"),
        (0, 0, 1.0, "turns no row right or wrong"),
    ],
)
def test_the_sentence_about_a_stage_follows_its_numbers(wins, losses, p, expected):
    quality = {"n": 200, "flips": wins + losses, "kl": 0.01, "against": against(wins, losses, p)}
    sentence = findings.describe_stage_cost("classification", "int4", quality)
    assert expected in sentence
    assert sentence.startswith("int4 against merged: ")


def summary(
    tfidf: tuple, keyword: tuple = (90, 10, 0.0001), checks: tuple = (), n: int = 200, first: str = "tfidf_logreg"
) -> dict:
    """A summary in which the model is compared with two baselines: (wins, losses, p) each."""
    rivals = {first: tfidf, "keyword": keyword, "base": (90, 10, 0.0001)}
    compared = {name: against(*counts, name=name) for name, counts in rivals.items()}
    value = {name: {"test": {"accuracy": 0.8 - one["difference"]["accuracy"]}} for name, one in compared.items()}
    return {
        "model": {"test": {"accuracy": 0.8, "n": n, "against": compared[first]}, "compared": compared},
        "baselines": {name: splits for name, splits in value.items() if name != "base"},
        "base": value["base"],
        "selected": {"run": "lora", "variant": "int4"},
        "gate": {
            "passed": all(passed for _, passed in checks),
            "checks": [{"name": n, "passed": p} for n, p in checks],
        },
    }


@pytest.mark.parametrize(
    ("tfidf", "expected"),
    [
        ((60, 20, 0.001), "Yes, it is better than TF-IDF + logistic regression by 11.7 to 28.3 points of accuracy: "),
        (
            (30, 20, 0.20),
            "It is not shown to be better than TF-IDF + logistic regression; the difference is -1.9 to +11.9",
        ),
        ((20, 60, 0.001), "No, it is worse than TF-IDF + logistic regression by 11.7 to 28.3 points of accuracy: "),
    ],
)
def test_the_sentence_about_the_baseline_follows_its_numbers(tfidf, expected):
    assert findings.describe_worth("classification", summary(tfidf), "200 test rows").startswith(expected)


def test_baselines_that_are_not_beaten_are_named():
    text = " ".join(findings.describe_rivals("classification", summary((60, 20, 0.001), keyword=(10, 60, 0.0001))))
    assert "better, by more than chance explains, than TF-IDF + logistic regression (0.600) and untouched" in text
    assert "It is worse than label word in text (1.050)." in text
    text = " ".join(findings.describe_rivals("classification", summary((30, 20, 0.2))))
    assert "It is not shown to be better than TF-IDF + logistic regression (0.750)." in text


def test_a_nearest_centroid_is_never_called_a_regression():
    """The report, the model card and the verdict name the baseline that was scored."""
    import package_model

    made = summary((90, 10, 0.0001), first="nearest_centroid")
    told = [
        findings.describe_worth("classification", made, "200 test rows"),
        findings.state_verdict("classification", made)[0],
        package_model._scores("classification", made | {"model": made["model"]}),
        formatting.format_check_name("accuracy_above_nearest_centroid"),
    ]
    assert all("TF-IDF + nearest centroid" in text.replace("\\", "") for text in told)
    assert not any("regression" in text for text in told)


@pytest.mark.parametrize(
    ("tfidf", "checks", "good", "expected"),
    [
        (
            (60, 20, 0.001),
            [("accuracy", True)],
            True,
            "Ship variant int4 of run lora: it passed the gate, and on the same",
        ),
        ((60, 20, 0.001), [], True, "Ship variant int4 of run lora if accuracy 0.800 is enough for you, since no gate"),
        (
            (60, 20, 0.001),
            [("accuracy", False)],
            False,
            "Do not ship variant int4 of run lora: it fails the gate on accuracy.",
        ),
        (
            (30, 20, 0.2),
            [("accuracy", True)],
            False,
            "yet: it passed the gate, but on the same 200 test rows it is not",
        ),
        ((30, 20, 0.2), [], False, "it is not shown to be better than TF-IDF + logistic regression."),
        (
            (30, 20, 0.2),
            [("accuracy", False)],
            False,
            "it fails the gate on accuracy, and on the same 200 test rows it is not shown to be better than TF-IDF + ",
        ),
    ],
)
def test_the_verdict_needs_the_gate_and_every_baseline(tfidf, checks, good, expected):
    text, ship = findings.state_verdict("classification", summary(tfidf, checks=tuple(checks)))
    assert expected in text
    assert ship is good


def test_what_the_rows_cannot_show_is_said_with_the_number_of_rows_that_could():
    shown = findings.describe_power("classification", against(60, 20, 0.001), 200, "TF-IDF")
    assert "about 320 rows would have been enough" in shown
    open_ = findings.describe_power("classification", against(30, 20, 0.2), 200, "TF-IDF")
    # 2.8 sqrt(50 / 200 / 200)
    assert (
        "200 rows show a difference of 9.9 points 4 times in 5. If the difference is as large as it looks here, about 320"
        in open_
    )
    assert "nothing says how many could show one" in findings.describe_power(
        "classification", against(9, 9, 1.0), 200, "TF-IDF"
    )
    one = {"run": "lora", "variant": "fp32", "difference": -0.01, "difference_ci95": [-0.03, 0.01]}
    undecided = findings.describe_significance("macro_f1", one | {"is_significant": False, "rows_needed": 1234})
    assert undecided == (
        "Its difference from lora/fp32 is not significant: -3.0 to +1.0 points of macro-F1."
        " If the difference is as large as it looks here, about 1,200 rows would settle it."
    )
    decided = one | {"difference": 0.02, "difference_ci95": [0.01, 0.03], "is_significant": True, "rows_needed": 50}
    assert "It is significantly better than lora/fp32, by 1.0 to 3.0 points" in findings.describe_significance(
        "macro_f1", decided
    )


def rank(group: str, mean: float, told_apart: bool | None, seeds: int = 1) -> dict:
    return {"group": group, "variant": "int4", "mean": mean, "is_significant": told_apart, "seeds": list(range(seeds))}


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        (
            [rank("a", 0.8, None), rank("b", 0.79, False)],
            "a/int4 is first by mean macro-F1, 0.800, but not significantly better than b/int4: this difference may be"
            " noise. There is one seed only, so the luck of the training is not measured: another seed may turn this round.",
        ),
        (
            [rank("a", 0.8, None, 3), rank("b", 0.79, False, 3), rank("c", 0.7, True, 3)],
            "a/int4 is first by mean macro-F1, 0.800, but not significantly better than b/int4: this difference may be"
            " noise. 1 of 3 is shown to be worse. Where there are several seeds (3), the intervals cover the luck of rows and"
            " training, if roughly with so few.",
        ),
        (
            [rank("a", 0.8, None, 6), rank("b", 0.6, True, 5), rank("c", 0.6, True)],
            "a/int4 is first by mean macro-F1, 0.800; each other one is shown to be worse. Where there are several seeds (5 to"
            " 6), the intervals cover the luck of rows and training. Of c there is one seed only: there the luck of the"
            " training is not measured.",
        ),
        (
            [rank("a", 0.8, None, 5)],
            "a/int4 has mean macro-F1 0.800. Where there are several seeds (5), the intervals cover the luck of rows and training.",
        ),
    ],
)
def test_the_sentence_about_the_ranking_says_what_is_noise(ranking, expected):
    assert findings.describe_ranking("macro_f1", ranking) == expected


def test_many_equal_settings_are_counted_and_the_many_comparisons_are_said():
    ranking = [rank("best", 0.8, None), *(rank(f"s{number}", 0.79, False) for number in range(10))]
    text = findings.describe_ranking("macro_f1", ranking)
    assert "than s0/int4, s1/int4, s2/int4, s3/int4 and 6 more: these differences may be noise." in text
    assert "Each of the 10 intervals stands for itself" in text


WORTH = {"chance": 1 / 3, "gain": 0.0123, "gain_ci95": [0.004, 0.031]}


@pytest.mark.parametrize(
    ("further", "worth", "expected"),
    [
        (
            10,
            WORTH,
            "On average they raise the best by at most 1.2 points of macro-F1 (95 % interval 0.4 to 3.1). That is",
        ),
        (
            1,
            WORTH,
            "With a chance of at most 33.3\u00a0%, 1 further run would hold one with a better macro-F1 than the best",
        ),
        (
            10,
            WORTH | {"gain": None, "gain_ci95": None},
            "How much better cannot be said: that takes more than 10 scored",
        ),
        (10, None, "so nothing can be said of further runs."),
        (0, None, "The 20 runs are a random sample of the 20 of the grid, and so all of them: no run is left to try."),
    ],
)
def test_the_sentence_about_further_runs_says_no_more_than_the_sample_shows(further, worth, expected):
    assert expected in findings.describe_further_runs("macro_f1", 20, 20 + further, further, worth)


@pytest.mark.parametrize(
    ("difference", "ends", "expected"),
    [
        (
            0.02,
            (0.004, 0.036),
            "against 0.780 into the original ones. The choice is shown to be worth 0.4 to 3.6 points of macro-F1.",
        ),
        (
            0.02,
            (-0.01, 0.05),
            "The choice is not shown to be worth anything: the difference is -1.0 to +5.0 points of macro-F1.",
        ),
    ],
)
def test_the_sentence_about_the_merge_follows_its_numbers(difference, ends, expected):
    values = {"original": 0.78, "dequantized": 0.78 + difference}
    merge = {"chosen": "dequantized", "metric": "macro_f1", "values": values, "difference": difference}
    text = findings.merge_choice("q", merge | {"difference_ci95": ends, "is_significant": ends[0] > 0})
    assert text.startswith("Of the two merges of run q the one into the dequantized weights was kept: macro-F1 0.800")
    assert text.endswith(expected)


def test_a_model_that_was_only_quantized_is_compared_with_the_base():
    stage = {"validation": {"against": against(5, 5, 1.0, "base")}, "size_mb": 90.0}
    found = {
        "selected": {"run": "base", "variant": "int4"},
        "base": {"size_mb": 270.0},
        "runs": {"base": {"stages": {"onnx-int4": stage}}},
    }
    text = findings.describe_quantization("classification", found)
    assert text.startswith("Against the untouched base model, int4 costs between")
    assert text.endswith("it has 90\u00a0MB instead of 270\u00a0MB.")


def test_the_commonest_mistake_is_named():
    some, none = (findings.list_label_pairs(["a", "b"], table) for table in ([[5, 3], [1, 6]], [[5, 0], [0, 6]]))
    assert findings.describe_errors(some).endswith("get a wrong label, most often a called b (3 rows).")
    assert findings.describe_errors(none) == "Nothing: all 11 test rows get their own label."


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.01, 0.1), "too sure"), ((-0.1, -0.01), "surer than it says"), ((-0.1, 0.1), "about right")],
)
def test_the_sentence_about_probabilities_follows_the_interval(ends, expected):
    assert expected in findings.describe_reliability({"gap_ci95": ends, "said": 0.8, "right": 0.75})


def test_every_plot_has_its_numbers_in_a_closed_table(html):
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    assert len(figures) == html.count("<svg")
    for figure in figures:
        assert re.search(r"<details><summary>.*?<td>", figure, flags=re.DOTALL)


def test_every_module_of_report_and_card_is_an_input_of_its_rule():
    """A rule's inputs are computed from imports: a module that they missed could change without a new report."""
    modules = {path for path in (SCRIPTS / "lib/report").glob("*.py") if path.name != "__init__.py"}
    assert modules - {SCRIPTS / "lib/report/hub_card.py"} <= set(find_code_closure(SCRIPTS / "write_report.py"))
    assert SCRIPTS / "lib/report/hub_card.py" in find_code_closure(SCRIPTS / "package_model.py")


def test_ticks_are_round_and_enclose_the_data():
    assert plots.choose_ticks(0.13, 0.92) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert plots.choose_ticks(0, 137) == [0, 50, 100, 150]
    same = plots.choose_ticks(0.8, 0.8)
    assert same[0] < 0.8 < same[-1]


def test_names_in_a_plot_are_escaped_and_keep_apart():
    points = [plots.Point(name, 100, 0.5, (0.4, 0.6), False) for name in ("<a>", "b & c")]
    svg = plots.draw_scatter(points, "size", "accuracy")
    assert "&lt;a&gt;" in svg
    assert "b &amp; c" in svg
    heights = re.findall(r'class="halo" x="[\d.]+" y="([\d.]+)"', svg)
    assert abs(float(heights[0]) - float(heights[1])) >= 15


def test_names_beside_dots_near_an_edge_stay_in_the_plot():
    chance = random.Random(0)
    for _ in range(300):
        bins = sorted((chance.random(), chance.random() ** 0.2, chance.randrange(10**5)) for _ in range(10))
        svg = plots.draw_reliability(bins[: chance.randint(1, 10)])
        heights = [float(y) for y in re.findall(r'class="halo" x="-?[\d.]+" y="([\d.-]+)"', svg)]
        assert 17 <= min(heights) <= max(heights) <= 264  # the axis is at 260


def spots(values: list[tuple[float, float]]) -> list[plots.Spot]:
    return [
        plots.Spot(f"a-run-of-a-sweep-number-{n}/<int4>", x, y, True, False, n == 0) for n, (x, y) in enumerate(values)
    ]


def test_names_beside_the_front_never_cover_each_other_however_close_the_dots():
    svg = plots.draw_front(spots([(92.1, 0.80 + n / 10000) for n in range(12)]), "size", "macro-F1")
    heights = sorted(float(y) for y in re.findall(r'<text x="266" y="([\d.]+)"', svg))
    assert len(heights) == 12
    assert min(after - before for before, after in itertools.pairwise(heights)) >= 16.9
    assert float(re.search(r'viewBox="0 0 480 (\d+)"', svg)[1]) > heights[-1] + 36 > heights[0] > 16
    assert "a-run-of-a-…umber-11/&lt;int4&gt;" in svg  # both ends of a long name


def test_the_front_joins_the_best_for_each_size():
    assert plots._staircase([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7), (4, 0.8)]) == [(1, 0.5), (2, 0.7), (3, 0.9)]
    svg = plots.draw_front([one._replace(in_line=False) for one in spots([(1, 0.5), (2, 0.7)])], "size", "macro-F1")
    assert 'class="front"' not in svg  # nothing keeps the constraints
