"""Laws of differences: they lead from the actual to the desired table, and from a table to itself nowhere."""

from hypothesis import given
from hypothesis import strategies as st

from pycni.reconcile.delta import diff, diff_keys, patched
from pycni.reconcile.order import Action, steps

TABLES = st.dictionaries(st.integers(0, 12), st.integers(0, 3))


@given(TABLES)
def test_a_table_does_not_differ_from_itself(table):
    assert diff(table, dict(table)).empty


@given(TABLES, TABLES)
def test_a_difference_leads_to_the_desired_table(desired, actual):
    assert patched(actual, diff(desired, actual)) == desired


@given(TABLES, TABLES)
def test_parts_of_a_difference_share_no_key(desired, actual):
    delta = diff(desired, actual)
    assert len({*delta.add, *delta.change, *delta.remove}) == delta.size


@given(TABLES, TABLES, st.sets(st.integers(0, 12)))
def test_a_difference_over_all_touched_keys_is_the_whole_difference(desired, actual, more):
    touched = {key for key in {*desired, *actual} if desired.get(key) != actual.get(key)} | more
    assert diff_keys(desired, actual, touched) == diff(desired, actual)


@given(st.lists(st.tuples(TABLES, TABLES), max_size=4))
def test_additions_go_forwards_and_removals_backwards(tables):
    deltas = [(str(index), diff(desired, actual)) for index, (desired, actual) in enumerate(tables)]
    plan = list(steps(deltas))
    made = [int(step.table) for step in plan if step.action is not Action.REMOVE]
    gone = [int(step.table) for step in plan if step.action is Action.REMOVE]
    assert made == sorted(made)
    assert gone == sorted(gone, reverse=True)
    assert [step.action is Action.REMOVE for step in plan] == [False] * len(made) + [True] * len(gone)
    assert len(plan) == sum(delta.size for _, delta in deltas)
