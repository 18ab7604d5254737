"""Selectors and labels find each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pycni.model.policy import Expression, Operator, Selector
from pycni.view.policy_index import Having, Wanting

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"))
EXPRESSIONS = st.lists(
    st.builds(
        Expression,
        key=st.sampled_from("ab"),
        operator=st.sampled_from([Operator.EXISTS, Operator.DOES_NOT_EXIST]),
    ),
    max_size=2,
)
SELECTORS = st.builds(
    lambda labels, some: Selector(labels=tuple(sorted(labels.items())), expressions=tuple(some)),
    LABELS,
    EXPRESSIONS,
)


@given(st.lists(SELECTORS), st.lists(st.integers(0, 20)), LABELS)
def test_whoever_selects_the_labels_is_a_candidate(selectors, gone, labels):
    index = Wanting()
    held = dict(enumerate(selectors))
    for number, selector in held.items():
        index.add(number, selector)
    for number in dict.fromkeys(gone):
        if number in held:
            index.remove(number, held.pop(number))
    found = list(index.candidates(labels))
    assert len(found) == len(set(found))
    assert (
        {number for number, selector in held.items() if selector.matches(labels)} <= set(found) <= held.keys()
    )
    assert sorted(index) == sorted(held)


@given(st.lists(LABELS), st.lists(st.integers(0, 20)), SELECTORS)
def test_whatever_is_selected_is_a_candidate(things, gone, selector):
    index = Having()
    held = dict(enumerate(things))
    for number, labels in held.items():
        index.add(number, labels)
    for number in dict.fromkeys(gone):
        if number in held:
            index.remove(number, held.pop(number))
    found = list(index.candidates(selector))
    assert len(found) == len(set(found))
    assert (
        {number for number, labels in held.items() if selector.matches(labels)} <= set(found) <= held.keys()
    )


def test_not_everything_is_a_candidate():
    index, others = Wanting(), Having()
    for number in range(100):
        index.add(number, Selector(labels=(("app", str(number)),)))
        others.add(number, {"app": str(number), "team": "a"})
    assert list(index.candidates({"app": "7", "team": "a"})) == [7]
    assert list(others.candidates(Selector(labels=(("app", "7"), ("team", "a"))))) == [7]
