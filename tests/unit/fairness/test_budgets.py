"""A budget that clients share: one alone has nearly all of it, and none can keep the others out."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.fairness.budgets import SharedBudget


def taken_alone(budget: SharedBudget, client: str) -> int:
    count = 0
    while budget.take(client, 1):
        count += 1
    return count


def test_one_client_has_all_but_the_reserve() -> None:
    """Of 80, an eighth stays free."""
    assert taken_alone(SharedBudget(80), "a") == 70


def test_a_later_client_is_let_in_and_a_greedy_one_is_not() -> None:
    """While one holds its 70, each of ten others gets its first one."""
    budget = SharedBudget(80)
    taken_alone(budget, "greedy")
    assert all(budget.take(f"late {number}", 1) for number in range(10))
    assert not budget.take("greedy", 1)
    assert budget.held == 80


def test_what_is_given_back_can_be_taken_again() -> None:
    """A client that returned everything is no longer counted, and the budget is empty again."""
    budget = SharedBudget(80)
    for client in ("a", "b"):
        budget.add(client, 30)
    for client in ("a", "b"):
        budget.give_back(client, 30)
    assert budget.held == 0
    assert taken_alone(budget, "c") == 70


def test_an_amount_beyond_the_capacity_never_fits() -> None:
    """Also for the first client of an empty budget."""
    assert not SharedBudget(80).take("a", 81)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=60))
def test_never_more_than_the_capacity_is_taken(wishes: list[tuple[str, int]]) -> None:
    """Whatever is asked for in whatever order."""
    budget = SharedBudget(100)
    held = sum(amount for client, amount in wishes if budget.take(client, amount))
    assert held == budget.held <= 100
