import threading

import pytest

from millstream.backends.llamacpp.deep_stack import call_with_stack


def test_results_and_errors_come_back() -> None:
    assert call_with_stack(lambda: threading.current_thread().name, 1) == "millstream-deep-stack"
    with pytest.raises(KeyError, match="lost"):
        call_with_stack(lambda: {}["lost"], 1 << 20)


def test_other_threads_keep_their_stacks() -> None:
    before = threading.stack_size()
    call_with_stack(lambda: None, 1 << 26)
    assert threading.stack_size() == before


def test_a_stack_that_is_too_large() -> None:
    with pytest.raises(MemoryError, match="no room for a stack of"):
        call_with_stack(lambda: None, 1 << 50)
    assert threading.stack_size() == 0
