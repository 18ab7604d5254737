"""Whatever is thrown at the settings, the answer is settings or a list of single lines; secrets are in none of them."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pycni.agent.settings import TABLE, Settings, SettingsError
from pycni.agent.settings_file import IGNORED, REFUSED, load

NAMES = [row.name for row in TABLE] + [*IGNORED, *REFUSED, "config", "help", "x"]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=30)
VALUES = st.one_of(
    TEXT,
    st.sampled_from(
        ["", "true", "0", "-1", "eth0", "10.0.0.1", "fd00::1/64", "http://e:1", "(", "/x", "9" * 30, "٣"]
    ),
    st.text(string.printable, max_size=8),
)


def outcome(argv, environment):
    """The settings, or the error lines after checking that they are lines."""
    try:
        return load(argv, environment, "node").settings
    except SettingsError as exc:
        lines = [str(problem) for problem in exc.problems]
        assert lines
        for line in lines:
            assert line.isprintable(), repr(line)
        return lines


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(VALUES, st.builds("--{}={}".format, st.sampled_from(NAMES), VALUES)), max_size=6))
@example(["--"])
@example(["--=", "-", "---x"])
@example(["--iface\n=x"])
def test_flags(argv):
    outcome(argv, {})


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.builds(
            lambda prefix, name: f"{prefix}_{name.upper().replace('-', '_')}",
            st.sampled_from(["PYCNID", "FLANNELD", "OTHER"]),
            st.sampled_from(NAMES),
        ),
        VALUES,
        max_size=6,
    )
)
def test_variables(environment):
    environment.pop("PYCNID_CONFIG", None)
    outcome([], environment)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=60), st.dictionaries(st.sampled_from(NAMES) | TEXT, JSON, max_size=4)
    )
)
def test_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "config"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    outcome([f"--config={path}"], {})


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
@pytest.mark.parametrize("other", ["", "--etcd-username=u", "--healthz-port=x"])
def test_the_password_is_in_no_line(tmp_path, source, other):
    secret = "s3cr3t-of-mine"
    path = tmp_path / "c"
    path.write_text(json.dumps({"etcd-password": secret}))
    argv = {"flag": [f"--etcd-password={secret}"], "file": [f"--config={path}"]}.get(source, [])
    found = outcome(
        [*argv, *([other] if other else [])], {"PYCNID_ETCD_PASSWORD": secret} if source == "variable" else {}
    )
    assert isinstance(found, Settings) is (other == "--etcd-username=u")
    assert secret not in repr(found)
