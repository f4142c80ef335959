"""Names of files as somebody who wishes ill would write them into an index, a listing or a manifest."""

HOSTILE_NAMES = [
    "/etc/passwd", "../secret", "a/../../secret", "..", ".", "a/./b", "a//b", "a/", "", "a\x00b", "a\nb", "a\x1b[31mb",
    "a\u2028b", "\ud800", "a\\..\\b", "C:\\x", "x" * 256, "x/" * 600 + "x", None, 3, ["a"], {"a": 1},
]  # fmt: skip
