"""Names that a reader can guess: a public function begins with a verb."""

import ast

from support.paths import ROOT

FILES = sorted([*ROOT.glob("scripts/**/*.py"), *ROOT.glob("src/**/*.py")])
# One word for one meaning: a new verb is added here only when none of these says it.
_TEXT = """
add adjust agree align allow answer attend balance batch bootstrap build calibrate call check choose claim classify
clean collect compare compile compute configure convert copy correct count cut decode delete dequantize derive
describe detect die disable divide download draw drop dump encode escape estimate expand explain extract factor fail
fetch find fit flatten follow format free fuse gather generate get group grow guess hash hide hold import index init
install join judge keep launch limit link list load locate lock log make map mark match measure mend merge mirror
multiply name normalize number omit open pack pad pair parse place predict prepare preserve publish pull quote rank
read redact refuse remove render repeat replace report require reserve resolve retrieve return round run sample save
score select separate serve set shard share shorten show shrink shuffle simulate sort split state store stream strip
sum summarize sync tell train trim try upload use verify wait walk weight wrap write can has is needs
"""
VERBS = _TEXT.split()
TERMS = {
    "main",
    "all_gather",
    "all_reduce_sum",
    "broadcast",
    "log_normalize",
}  # of Python and torch


def list_public_functions():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [one.name for one in functions if not one.name.startswith("_")]


def test_public_functions_begin_with_a_verb_and_every_verb_is_used():
    names = list_public_functions()
    others = [name for name in names if name.split("_")[0] not in VERBS and name not in TERMS]
    assert not others, "say what they do, such as find_... or describe_..."
    assert not {*VERBS} - {name.split("_")[0] for name in names}, "take these out"
