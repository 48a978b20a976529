from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.budget import RetryBudget

# Pauses at which calls and retries are just not forgotten, or just are.
PAUSES = st.sampled_from([0, 0.25, 0.5, 1, 8.5, 9.25, 9.75, 10])
STEPS = st.lists(st.tuples(PAUSES, st.sampled_from(["call", "retry"]), st.integers(1, 20)), max_size=30)


@settings(deadline=None)
@given(st.sampled_from([0, 0.1, 0.2, 1]), st.sampled_from([0, 0.5, 10]), st.integers(0, 99), STEPS)
def test_in_no_ten_seconds_it_is_exceeded(share, reserve, begin, steps):
    budget, now = RetryBudget(share, reserve), begin / 16
    calls, retries = [], []
    for pause, what, times in steps:
        now += pause
        for _ in range(times):
            if what == "call":
                budget.deposit(now)
                calls.append(now)
            elif budget.withdraw(now):
                retries.append(now)
                made = sum(at > now - 10 for at in calls)
                assert sum(at > now - 10 for at in retries) <= share * made + reserve * 10 + 1e-9


def withdraw_all(budget, now):
    count = 0
    while budget.withdraw(now):
        count += 1
    return count


def test_it_allows_a_share_of_the_calls_and_the_reserve():
    budget = RetryBudget(0.2, 1)
    for call in range(50):
        budget.deposit(100 + call / 10)
    assert withdraw_all(budget, 105.0) == 20
    for _ in range(4):
        budget.deposit(105.0)
    assert not budget.withdraw(105.0)
    budget.deposit(105.0)
    assert withdraw_all(budget, 105.0) == 1


def test_calls_and_retries_are_forgotten_after_ten_seconds():
    budget = RetryBudget(0.2, 1)
    for _ in range(50):
        budget.deposit(100.0)
    assert withdraw_all(budget, 109.9) == 20
    assert withdraw_all(budget, 119.9) == 0
    assert withdraw_all(budget, 120.9) == 10


def test_not_the_calls_later_nor_the_retries_sooner():
    budget = RetryBudget(0.2, 1)
    for _ in range(50):
        budget.deposit(100.0)
    assert withdraw_all(budget, 110.5) == 10
    assert withdraw_all(budget, 120.4) == 0
    assert withdraw_all(budget, 121.0) == 10


def test_without_reserve_only_calls_allow_anything():
    budget = RetryBudget(0.5, 0)
    budget.deposit(100.0)
    assert not budget.withdraw(100.0)
    budget.deposit(100.0)
    assert budget.withdraw(100.0)
    assert withdraw_all(RetryBudget(0, 0), 100.0) == 0


def test_it_is_spent_from_a_refusal_until_it_allows_again():
    budget = RetryBudget(1, 0)
    budget.deposit(100.0)
    assert budget.withdraw(100.0)
    assert not budget.is_spent
    assert not budget.withdraw(100.0)
    assert budget.is_spent
    budget.deposit(100.0)
    assert budget.is_spent
    assert budget.withdraw(100.0)
    assert not budget.is_spent


def test_it_is_spent_no_longer_than_into_the_next_second():
    budget = RetryBudget(0, 0)
    budget.deposit(100.5)
    budget.withdraw(100.5)
    budget.deposit(100.9)
    assert budget.is_spent
    budget.deposit(101.0)
    assert not budget.is_spent
