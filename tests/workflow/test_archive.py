"""`snakemake --report`: one archive with the report, the numbers, the plots and the model card, for those who file runs."""

import zipfile

import pytest

from support.browser import Browser

pytestmark = pytest.mark.workflow

HELD = {
    "report.html": "Report",
    "README.md": "Report",
    "summary.json": "Numbers",
    "learning_curve.csv": "Numbers",
    "confusion.csv": "Numbers",
    "variants.csv": "Numbers",
}


@pytest.fixture
def archive(workspace):
    done = workspace.snakemake("--report", "report.zip")
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(workspace.root / "report.zip") as file:
        file.extractall(workspace.root / "unpacked")
    (page,) = (workspace.root / "unpacked").glob("*/report.html")
    return workspace, page


def test_the_archive_holds_what_a_run_is_filed_with_and_opens_without_an_error(archive, tmp_path_factory):
    workspace, page = archive
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.open(page, 1280)
        results, categories = browser.run("[results, categories]")
        faults = [event["params"] for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
        text = browser.run("document.body.innerText")
        asked = [
            one["params"]["request"]["url"] for one in browser.events if one["method"] == "Network.requestWillBeSent"
        ]
    finally:
        browser.close()
    assert faults == []
    assert {"Report", "Numbers"} <= {*text.split()}
    assert all(url.startswith(("file:", "data:")) for url in asked)
    listed = {results[name]["name"]: category for category in categories for name in categories[category]["Other"]}
    assert listed == HELD
    assert all(result["caption"].strip() for result in results.values())
    (summary,) = page.parent.glob("data/raw/*/summary.json")
    assert summary.read_bytes() == (workspace.root / "results/summary.json").read_bytes()
