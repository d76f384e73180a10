"""What all connections of a server may have queued together."""

from __future__ import annotations

import pytest

from geventws.budget import OutputBudget


def test_total_is_the_sum_of_the_changes():
    budget = OutputBudget(100, pytest.fail)
    for difference in (60, 40, -100, 100):
        budget.change(difference)
    assert (budget.limit, budget.total) == (100, 100)


def test_relief_is_asked_for_above_the_limit():
    asked = []

    def relieve(budget):
        asked.append(budget.total)
        # What goes out while others are failed does not ask again.
        budget.change(5)
        budget.change(-budget.total)

    budget = OutputBudget(100, relieve)
    budget.change(101)
    assert (asked, budget.total) == ([101], 0)
    budget.change(200)
    assert asked == [101, 200]


def test_a_decrease_never_asks():
    asked = []
    budget = OutputBudget(100, lambda budget: asked.append(budget.total))
    budget.change(300)
    budget.change(-50)
    assert (asked, budget.total) == ([300], 250)


def test_relief_that_raises_is_asked_for_again():
    def relieve(budget):
        raise OSError("broken")

    budget = OutputBudget(10, relieve)
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            budget.change(11)
