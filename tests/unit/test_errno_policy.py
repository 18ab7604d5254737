from __future__ import annotations

import errno

import pytest

from pycni.kernel.errors import Verdict, judge

ROWS = [
    ("add", errno.EEXIST, Verdict.EXISTS),
    ("change", errno.EEXIST, Verdict.PERMANENT),
    ("remove", errno.ENOENT, Verdict.DONE),
    ("remove", errno.ESRCH, Verdict.DONE),
    ("remove", errno.ENODEV, Verdict.DONE),
    ("remove", errno.EADDRNOTAVAIL, Verdict.DONE),
    ("add", errno.ENODEV, Verdict.PERMANENT),
    ("change", errno.ENOENT, Verdict.PERMANENT),
    ("add", errno.ENETUNREACH, Verdict.PERMANENT),
    *[
        (action, code, Verdict.TRANSIENT)
        for action in ("add", "change", "remove")
        for code in (errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENOBUFS, errno.ETIMEDOUT)
    ],
    *[
        (action, code, Verdict.PERMANENT)
        for action in ("add", "change", "remove")
        for code in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)
    ],
]


@pytest.mark.parametrize(
    ("action", "code", "verdict"), ROWS, ids=[f"{action}-{errno.errorcode[code]}" for action, code, _ in ROWS]
)
def test_an_errno_means_one_thing_for_an_operation(action: str, code: int, verdict: Verdict) -> None:
    assert judge(action, code) is verdict
