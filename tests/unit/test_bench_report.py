"""Reports of benchmarks: what they say of a row, how they are drawn, what counts as a fall."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import compare, judge, rows
from bench.html import page
from bench.model import Machine, Report, ReportError, Row, Screen, decode, encode
from bench.targets import PROVEN, TARGETS, Target

ROOT = Path(__file__).parents[2]

MACHINE = Machine(
    processor="a <b>",
    cores=2,
    memory_gib=4.0,
    kernel="6.1",
    system="Debian",
    python="3.11",
    tools={"ip": "6.1"},
)


def report(*found: Row, quick: bool = False, failed: tuple[str, ...] = ()) -> Report:
    screen = Screen(name="wire", title="Is it <fast>?", rows=list(found), plots=["p"], failed=list(failed))
    return Report(
        machine=MACHINE, began="2026-01-01T00:00:00+00:00", took_s=90, quick=quick, screens=[screen]
    )


def one(ratio: float | None, target: str = ">= 0.9", noise: float | None = None, better: str = "") -> Row:
    return Row(question="q", ours="1", peer="hand 2", ratio=ratio, target=target, noise=noise, better=better)


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [(0.9, ">= 0.9", "yes"), (0.89, ">= 0.9", "NO"), (2.0, "<= 1", "NO"), (1.0, "< 1 s", "NO"), (0.5, "", "-"),
     (None, ">= 1", "-")],
)  # fmt: skip
def test_a_target_is_met_or_not(ratio: float | None, target: str, met: str) -> None:
    assert one(ratio, target).met == met


@pytest.mark.parametrize(
    ("ratio", "noise", "within"),
    [
        (0.85, 0.1, True),
        (0.95, 0.1, True),
        (0.8, 0.1, False),
        (1.1, 0.1, False),
        (0.9, None, False),
        (None, 0.1, False),
    ],
)
def test_a_verdict_is_uncertain_when_its_target_is_within_the_noise(
    ratio: float | None, noise: float | None, within: bool
) -> None:
    assert one(ratio, noise=noise).within_noise is within
    assert not one(ratio, target="", noise=noise).within_noise


def test_a_report_comes_back_as_it_was_written() -> None:
    before = report(one(1.0, noise=0.1), failed=("test_x",))
    assert decode(encode(before), "f") == before
    with pytest.raises(ReportError, match=r"f\.json: no report"):
        decode(b"[]", "f.json")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_needs_nothing_else_and_shows_every_row() -> None:
    found = Page()
    found.feed(page(report(one(0.5), one(1.2), failed=("test_x",)), {"p": "<svg/>"}))
    assert all(source.startswith(("#", "data:")) for source in found.sources)
    assert "b" not in found.tags, "names are escaped"
    assert found.tags.count("tr") == 3 + len(TARGETS) + 1 + len(PROVEN) + 1
    text = "".join(found.words)
    assert "1 of 2 rows with a target met it" in text
    assert "broke: test_x" in text
    assert "2.00 s" not in text
    assert "2.00 s" in page(report(one(2.0, "<= 5 s")), {})
    assert {"yes", "no"} <= set(found.words)


@pytest.mark.parametrize(
    ("before", "after", "target", "noise", "word"),
    [
        (1.0, 0.95, ">= 0.9", 0.0, "same"),
        (1.0, 0.85, ">= 0.9", 0.0, "fell"),
        (1.0, 0.85, ">= 0.9", 0.10, "same"),
        (1.0, 1.30, ">= 0.9", 0.0, "rose"),
        (1.0, 1.30, "<= 1.2", 0.0, "fell"),
        (1.0, 0.70, "<= 1.2", 0.0, "rose"),
        (1.0, 0.70, "", 0.0, "differs"),
        (1.0, None, ">= 0.9", 0.0, "differs"),
        (1.0, 0.7, ">= 0.9", None, "same"),
        (1.0, 0.6, ">= 0.9", None, "fell"),
    ],
)
def test_a_row_falls_when_it_is_worse_by_more_than_its_noise(
    before: float, after: float | None, target: str, noise: float | None, word: str
) -> None:
    changes = compare.between(report(one(before, target, noise)), report(one(after, target, noise)))
    assert [item.word for item in changes] == [word]


def test_quick_runs_may_differ_more() -> None:
    assert compare.between(report(one(1.0)), report(one(0.7), quick=True))[0].word == "same"


def test_accepted_ratios_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ACCEPTED", tmp_path / "accepted.json")
    monkeypatch.setattr(compare, "FIGURES", tmp_path / "FIGURES.md")
    file = tmp_path / "r.json"
    alone = Row(question="alone", ours="3 s", ratio=3.0, target="<= 5")
    beside = Row(question="beside", ours="3 s", peer="somebody once: 9 s", ratio=3.0, target="<= 5 s")
    file.write_bytes(encode(report(one(1.0), alone, beside)))
    assert compare.main(["--accept", str(file)]) == 0
    assert list(json.loads((tmp_path / "accepted.json").read_bytes())) == ["wire: q"], "a time is no ratio"
    assert compare.main(["--check", str(file)]) == 0
    file.write_bytes(encode(report(one(0.5))))
    assert compare.main(["--check", str(file)]) == 1
    assert "fell" in capsys.readouterr().out
    file.write_bytes(encode(report(one(0.5), quick=True)))
    assert compare.main(["--accept", str(file)]) == 2
    assert "quick" in capsys.readouterr().err
    assert compare.main(["--check", str(tmp_path / "none.json")]) == 2


def test_other_files_stay_accepted_when_one_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ACCEPTED", tmp_path / "accepted.json")
    monkeypatch.setattr(compare, "FIGURES", tmp_path / "FIGURES.md")
    file, later = tmp_path / "r.json", report(one(2.0))
    file.write_bytes(encode(report(one(1.0))))
    later.screens[0].name = "cni"
    compare.main(["--accept", str(file)])
    file.write_bytes(encode(later))
    compare.main(["--accept", str(file)])
    found = json.loads((tmp_path / "accepted.json").read_bytes())
    assert {key: item["ratio"] for key, item in found.items()} == {"cni: q": 2.0, "wire: q": 1.0}
    told = (tmp_path / "FIGURES.md").read_text()
    assert [line for line in told.splitlines() if line.startswith(("## ", "| q "))] == [
        "## wire",
        "| q | 1 | hand 2 | 1.00 | >= 0.9 | yes |",
        "## cni",
        "| q | 1 | hand 2 | 2.00 | >= 0.9 | yes |",
    ]
    later.screens[0].rows = [one(0.2, noise=0.1)]
    file.write_bytes(encode(later))
    compare.main(["--accept", str(file)])
    told = (tmp_path / "FIGURES.md").read_text()
    assert told.count("## cni") == 1
    assert "| q | 1 | hand 2 | 0.20 ±10 % | >= 0.9 | **no** |" in told
    assert "2026-01-01; a <b>, 2 cores" in told


def test_the_noise_of_equal_rounds_is_none_and_few_rounds_tell_nothing() -> None:
    assert rows.noise([1.0] * 9) == 0
    assert rows.noise([1.0, 2.0, 3.0]) is None
    assert 0.05 < (rows.noise([0.9, 1.0, 1.1, 0.8, 1.2, 1.0, 1.0, 0.9]) or 0) < 0.2


def test_every_target_names_a_benchmark_or_a_test_that_is_there() -> None:
    for target in TARGETS:
        assert target.file == judge.SUITE or (ROOT / f"bench/test_{target.file}.py").is_file(), target
    for proven in PROVEN:
        assert (ROOT / proven.test).is_file(), proven
    assert len(set(TARGETS)) == len(TARGETS)


TARGET = Target(9, "fast", "wire", "vxlan*: throughput")


@pytest.mark.parametrize(
    ("target", "found", "word", "first"),
    [
        (TARGET, (("vxlan, a: throughput", 1.0, ">= 0.9"),), judge.MET, 1.0),
        (TARGET, (("vxlan: throughput", 1.0, ">= 0.9"), ("vxlan, a: throughput", 0.8, ">= 0.9")), judge.MISSED, 0.8),
        (TARGET, (("vxlan: throughput", 0.95, ">= 0.9"), ("vxlan, a: throughput", 0.9, ">= 0.4")), judge.MET, 0.95),
        (TARGET, (("vxlan: throughput", 1.0, ""), ("host-gw: throughput", 1.0, ">= 0.9")), judge.NOT_MEASURED, None),
        (TARGET, (("vxlan: throughput", 0.0, ">= 0.9"), ("vxlan, a: throughput", 3.0, "<= 0")), judge.MISSED, 0.0),
        (TARGET, (), judge.NOT_MEASURED, None),
        (TARGET._replace(only_told=True), (("vxlan: throughput", 1.0, ""),), judge.TOLD, 1.0),
    ],
    ids=["met", "one-missed", "nearest-to-its-bound-first", "no-row-promises", "nothing-at-all", "no-row", "only-told"],
)  # fmt: skip
def test_a_target_is_met_when_all_its_rows_are(
    monkeypatch: pytest.MonkeyPatch,
    target: Target,
    found: tuple[tuple[str, float, str], ...],
    word: str,
    first: float | None,
) -> None:
    monkeypatch.setattr(judge, "TARGETS", (target,))
    rows = [Row(question=question, ours="1", ratio=ratio, target=bound) for question, ratio, bound in found]
    (judged,) = judge.judge(report(*rows))
    assert judged.word == word
    assert (judged.rows[0].ratio if judged.rows else None) == first


def test_the_page_begins_with_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Target(9, "elsewhere", "cni", "*")
    told = Target(9, "all <told>", "wire", "*", only_told=True)
    monkeypatch.setattr(judge, "TARGETS", (TARGET._replace(question="q*"), other, told))
    made = report(one(0.5), Row(question="q2", ours="2", ratio=1.0, target=">= 0.9"))
    assert judge.summary(made) == (
        "targets: 0 met, 1 missed, 1 not measured in this run; 1 figures asked for and told"
    )
    text = page(made, {})
    assert text.index('id="targets"') < text.index('id="wire"')
    assert '<a href="#wire">q (2 rows)</a>' in text
    assert "1 of 2</span>" in text
    assert "not measured in this run</span>" in text
    assert "all &lt;told&gt;" in text


def test_the_suite_itself_is_a_row() -> None:
    (full,), (quick,) = (judge.suite(600, quick=quick).rows for quick in (False, True))
    assert (full.met, quick.met) == ("yes", "NO")
    for row in (full, quick):
        assert [target.file for target in TARGETS if target.question == row.question] == [judge.SUITE]
