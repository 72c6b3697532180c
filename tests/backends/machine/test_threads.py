"""ThreadChooser: which number of threads it settles on, and what it does when the machine changes."""

from collections.abc import Callable

import pytest

from millstream.backends.machine.threads import ThreadChooser, size_bound


def learn(chooser: ThreadChooser, num_tokens: int, seconds: Callable[[int], float], steps: int) -> list[int]:
    """Threads of so many steps that take `seconds(threads)`."""
    chosen = []
    for _ in range(steps):
        chosen.append(chooser.choose(num_tokens))
        chooser.observe(num_tokens, seconds(chosen[-1]))
    return chosen


@pytest.mark.parametrize("best", [1, 2, 4, 6])
def test_the_fastest_number_is_chosen_after_the_learning_steps(best: int) -> None:
    chooser = ThreadChooser(6, tunes=True)
    learn(chooser, 8, lambda threads: 1 + abs(threads - best), chooser.learning_steps)
    assert chooser.choose(8) == best


def test_each_size_of_steps_has_its_own_number() -> None:
    chooser = ThreadChooser(2, tunes=True)
    learn(chooser, 1, lambda threads: threads, chooser.learning_steps)
    learn(chooser, 100, lambda threads: 1 / threads, chooser.learning_steps)
    assert chooser.choose(1) == 1
    assert chooser.choose(100) == chooser.choose(65) == chooser.choose(128) == 2


def test_nothing_is_tried_on_larger_steps_than_those_that_need_the_most() -> None:
    chooser = ThreadChooser(4, tunes=True)
    learn(chooser, 8, lambda threads: 1 / threads, chooser.learning_steps)
    assert set(learn(chooser, 64, lambda threads: 1 / threads, 100)) == {4}
    assert set(learn(chooser, 1, lambda threads: threads, 100)) == {1, 2, 4}


def test_a_given_number_is_taken_as_it_is() -> None:
    chooser = ThreadChooser(4, tunes=False)
    assert set(learn(chooser, 1, lambda threads: threads, 1000)) == {4}
    assert chooser.learning_steps == 1


def test_a_machine_that_becomes_busy_and_quiet_again_changes_the_number() -> None:
    chooser = ThreadChooser(2, tunes=True)
    quiet, busy = (lambda threads: 1 / threads), (lambda threads: float(threads))
    learn(chooser, 1, quiet, 1000)
    assert chooser.choose(1) == 2
    learn(chooser, 1, busy, 1000)
    assert chooser.choose(1) == 1
    learn(chooser, 1, quiet, 1000)
    assert chooser.choose(1) == 2


def test_trials_of_a_hopeless_number_are_rare_and_short() -> None:
    chooser = ThreadChooser(2, tunes=True)
    chosen = learn(chooser, 1, lambda threads: 1 / threads, 10_000)
    assert 10 < chosen.count(1) < 100


def test_noise_changes_nothing() -> None:
    chooser = ThreadChooser(2, tunes=True)
    learn(chooser, 1, lambda threads: 1.0, 10)
    seconds = iter([1.0, 0.97, 1.02, 0.99, 1.01, 0.98] * 1000)
    assert set(learn(chooser, 1, lambda threads: next(seconds), 5000)) == {1, 2}
    assert chooser.choose(1) == 2


def test_one_slow_step_of_a_rival_is_forgiven() -> None:
    chooser = ThreadChooser(2, tunes=True)
    seconds = iter([1.0, 1.0, 1.0, 1.4, 0.5, 0.5])
    learn(chooser, 1, lambda threads: next(seconds), 6)
    assert chooser.choose(1) == 1


def test_sizes_are_powers_of_two() -> None:
    assert [size_bound(n) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
