"""Licenses of the demo's data and base model: in NOTICE, and in the card of a model that was made from them."""

from pathlib import Path

import fetch_tweets
import yaml

from lib.provenance.notices import find_notices

ROOT = Path(__file__).resolve().parents[2]
DEMO = yaml.safe_load((ROOT / "config.yaml").read_text())
NOTICE = (ROOT / "NOTICE").read_text()


def test_the_demo_s_sources_have_their_notices():
    notices = find_notices(DEMO)
    package, tweets = DEMO["base_model"]["package"], fetch_tweets.PACKAGE
    for text in (notices["base model"], NOTICE):
        assert f"{package['name']} {package['version']}" in text
        assert "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct" in text
        assert "Apache" in text
    for text in (notices["rows"], NOTICE):
        assert f"{tweets['name']} {tweets['version']}" in text
        assert "https://github.com/cjhutto/vaderSentiment" in text
        assert "MIT License, Copyright (c) 2016 C.J. Hutto" in text


def test_nothing_is_claimed_about_what_a_user_brings():
    base = {"hub": {"id": "someone/tiny", "revision": "0" * 40}, "package": None}
    assert find_notices({"base_model": base, "data": {"files": ["data/mine.json"]}}) == {}
    assert find_notices({"base_model": {"path": "base"}, "data": {"files": None}}) == {}
    other = DEMO["base_model"]["package"] | {"sha256": "0" * 64}
    mixed = [*DEMO["data"]["files"], "data/mine.json"]
    assert find_notices({"base_model": {"package": other}, "data": {"files": mixed}}) == {}
