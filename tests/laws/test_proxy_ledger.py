"""Claims and ledgers: the order of updates does not matter, and differences lead from one state to the next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.service import FrontendKey
from pycni.reconcile.delta import patched
from pycni.reconcile.ledger import Ledger
from pycni_proxy.claims import Claims

KEYS = [FrontendKey(Family.V4, bytes((10, 0, 0, n)), 6, 80) for n in range(4)]
WISHES = st.frozensets(st.sampled_from(KEYS))
SERVICES = st.sampled_from(["a/a", "a/b", "b/a"])
STEPS = st.lists(st.tuples(SERVICES, st.integers(0, 2), WISHES), max_size=12)


def expected(wishes):
    """By definition: the oldest, then the smallest name, of all who want a key."""
    return {
        key: min((created, name) for name, (created, wanted) in wishes.items() if key in wanted)[1]
        for key in KEYS
        if any(key in wanted for _, wanted in wishes.values())
    }


@given(STEPS)
def test_an_address_has_the_owner_the_rule_names_after_any_history(steps):
    claims, wishes = Claims(), {}
    for name, created, wanted in steps:
        before = expected(wishes)
        was = wishes.get(name, (0, frozenset()))[1]
        touched = claims.update(name, created, was, wanted)
        wishes[name] = (created, wanted)
        after = expected(wishes)
        assert {key: owner for key in KEYS if (owner := claims.owner(key))} == after
        moved = {before.get(key) for key in KEYS if before.get(key) != after.get(key)} | {
            after.get(key) for key in KEYS if before.get(key) != after.get(key)
        }
        assert touched == moved - {None, name}


OWN = st.dictionaries(st.integers(0, 5), st.integers(0, 2), max_size=4)
SHARED = st.frozensets(st.integers(0, 3))


@given(st.lists(st.tuples(st.integers(0, 2), OWN, SHARED, st.booleans()), max_size=15))
def test_differences_carried_out_give_what_is_desired(steps):
    ledger = Ledger(("shared", "own"), frozenset({"shared"}))
    kernel = {"shared": {}, "own": {}}
    rows = {}
    for owner, own, shared, take in steps:
        if owner in rows:
            ledger.drop(rows[owner])
        rows[owner] = {
            "shared": dict.fromkeys(shared, "x"),
            "own": {(owner, key): v for key, v in own.items()},
        }
        ledger.put(rows[owner])
        if take:
            for name, delta in ledger.take():
                kernel[name] = patched(kernel[name], delta)
    for name, delta in ledger.take():
        kernel[name] = patched(kernel[name], delta)
    assert kernel == ledger.tables
    assert kernel["own"] == {key: value for row in rows.values() for key, value in row["own"].items()}
    assert set(kernel["shared"]) == {key for row in rows.values() for key in row["shared"]}
    assert ledger.take() == []


def test_the_difference_against_the_kernel_names_everything_that_is_wrong_there():
    ledger = Ledger(("a", "b"), frozenset())
    ledger.put({"a": {1: "x", 2: "y"}, "b": {1: "z"}})
    found = dict(ledger.against({"a": {2: "other", 3: "foreign"}, "b": {1: "z"}}))
    assert set(found) == {"a"}
    assert (found["a"].add, found["a"].change, found["a"].remove) == ({1: "x"}, {2: "y"}, {3: "foreign"})
    assert ledger.take() == []


def test_two_owners_of_a_row_that_is_not_shared_are_a_mistake():
    ledger = Ledger(("own",), frozenset())
    ledger.put({"own": {1: "x"}})
    with pytest.raises(ValueError, match="two rows for 1"):
        ledger.put({"own": {1: "x"}})
