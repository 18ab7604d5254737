"""nft's error output becomes an errno and a message that names the line."""

import errno

import pytest

from pycni.kernel.nft import parse_messages

CASES = [
    pytest.param(
        "Error: Could not process rule: No such file or directory\nadd rule inet x zz accept\n  ^^\n",
        errno.ENOENT,
        "Could not process rule: No such file or directory in: add rule inet x zz accept",
        id="refused by the kernel",
    ),
    pytest.param(
        "Error: No such file or directory\nlist table inet nope\n                ^^^^\n",
        errno.ENOENT,
        "No such file or directory in: list table inet nope",
        id="not found while listing",
    ),
    pytest.param(
        "Error: syntax error, unexpected newline, expecting string\nfdfd\n    ^\n",
        errno.EINVAL,
        "syntax error, unexpected newline, expecting string in: fdfd",
        id="syntax",
    ),
    pytest.param("", errno.EINVAL, "nft gave no reason", id="silent"),
    pytest.param(
        "Error: Could not process rule: File exists\na\n^\nError: Could not process rule: Invalid argument\nb\n",
        errno.EEXIST,
        "Could not process rule: File exists in: a",
        id="the first of several",
    ),
]


@pytest.mark.parametrize(("messages", "number", "detail"), CASES)
def test_messages_become_errno_and_detail(messages, number, detail):
    assert parse_messages(messages) == (number, detail)


def test_a_long_line_is_cut_around_the_marker():
    line = "add element inet t s { " + ", ".join(f"10.0.0.{i}" for i in range(200)) + " }"
    marker = " " * line.index("10.0.0.150") + "^^^^^^^^^^"
    _, detail = parse_messages(f"Error: Could not process rule: File exists\n{line}\n{marker}\n")
    assert "10.0.0.150" in detail
    assert len(detail) < 300
