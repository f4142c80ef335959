"""What a row says of its split itself: splits that were given, and groups that stay together."""

import random

import pytest

from lib.core.cli import UserError
from support.data_stages import audit, row

PARTS = {"column": "part", "values": {"test": "eval"}}


def test_a_row_keeps_the_split_that_it_was_given_and_duplicates_across_splits_stay(tmp_path, tiny_phi3):
    rows = [row("He ran.") | {"part": "train"}, row("He ran.") | {"part": "eval"}, row("He ran.") | {"part": "eval"}]
    rows += [
        row("She sat.") | {"part": None},
        row("We ate.") | {"part": "dev"},
        row("He ran.", "fear") | {"part": "eval"},
    ]
    result, kept, rejected = audit(tmp_path, tiny_phi3, rows, split=PARTS)
    assert [(one["number"], one.get("split")) for one in kept] == [(1, "train"), (4, None)]
    reasons = {one["number"]: (one["reason"], one["detail"]) for one in rejected}
    assert reasons[2][0] == reasons[3][0] == reasons[6][0] == "label_conflict", "within the split alone"
    assert reasons[5] == ("no_split", "'part' is 'dev', none of 'train', 'validation', 'eval'; see split.values")
    result, kept, _ = audit(tmp_path, tiny_phi3, rows[:3], split=PARTS)
    assert [one["split"] for one in kept] == ["train", "test"]
    assert kept[0]["id"] != kept[1]["id"]
    assert kept[0]["cluster"] == kept[1]["cluster"]
    assert result["exact_duplicates"] == 1


def test_rows_of_a_group_are_one_cluster_united_with_near_duplicates(tmp_path, tiny_phi3):
    texts = ["The train left the station at noon today.", "The train left the station at noon today!", "Nine candles."]
    rows = [row(text) | {"who": who, "place": place} for text, who, place in zip(texts, "abb", "xyz", strict=True)]
    rows += [row("Alone") | {"who": "c", "place": "w"}, row("Nobody") | {"who": " ", "place": "x"}]
    rows += [row("Elsewhere") | {"who": "d", "place": "w"}]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, split={"groups": ["who", "place"]})
    clusters = {one["number"]: one["cluster"] for one in kept}
    assert clusters[1] == clusters[2] == clusters[3] != clusters[4] == clusters[6]
    assert kept[0]["groups"] == ["who=a", "place=x"]
    assert [one["detail"] for one in rejected] == ["'who', a column of split.groups, is empty"]


@pytest.mark.parametrize("split", [{"column": "kind"}, {"groups": ["kind"]}])
def test_a_column_of_the_split_that_no_row_has_stops(tmp_path, tiny_phi3, split):
    with pytest.raises(UserError, match="no row has the column 'kind'; the columns are .*: mend split"):
        audit(tmp_path, tiny_phi3, [row("He ran."), row("She sat.")], split=split)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_connected_groups_whatever_the_order_of_the_rows(tmp_path, tiny_phi3, seed):
    """And so no group straddles a split: clusters never do."""
    draw = random.Random(seed)
    rows = [
        row(f"{draw.getrandbits(64):x} {draw.getrandbits(64):x}")
        | {"who": f"w{draw.randrange(25)}", "where": f"p{draw.randrange(40)}"}
        for _ in range(60)
    ]
    _, kept, _ = audit(tmp_path, tiny_phi3, rows, split={"groups": ["who", "where"]})
    members: dict[str, set[int]] = {}
    for one in kept:
        for group in one["groups"]:
            members.setdefault(group, set()).add(one["cluster"])
    assert all(len(clusters) == 1 for clusters in members.values())
    joined = {frozenset(one["groups"]) for one in kept}
    components: list[set[str]] = []
    for groups in joined:
        touching = [part for part in components if part & groups]
        components = [part for part in components if part not in touching] + [set(groups).union(*touching)]
    assert len({one["cluster"] for one in kept}) == len(components), "and none is joined without need"
