"""Token ids from lists, arrays, tensors and DLPack capsules."""

from typing import Any

import numpy as np
import pytest

from millstream.allspark.inputs import prompt_of_inputs, token_ids_of
from millstream.errors import InvalidArgument


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        (1, 2, 3),
        [[1, 2, 3]],
        np.array([1, 2, 3]),
        np.array([[1, 2, 3]], dtype=np.int32),
        [np.int64(1), np.int32(2), 3],
    ],
)
def test_plain_holders(value: Any) -> None:
    ids = token_ids_of(value)
    assert ids == [1, 2, 3]
    assert all(type(token) is int for token in ids)


@pytest.mark.parametrize(
    "value", [[1.0, 2.0], np.array([1.5]), [[1], [2]], np.zeros((2, 3), dtype=int), "123", 5, None, [None]]
)
def test_what_holds_no_ids(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="input_ids"):
        token_ids_of(value)


def test_nothing_is_an_empty_prompt() -> None:
    assert token_ids_of([]) == token_ids_of(np.array([], dtype=int)) == token_ids_of([[]]) == []


def test_inputs_have_one_key() -> None:
    assert prompt_of_inputs({"input_ids": [4]}) == [4]
    with pytest.raises(InvalidArgument, match="attention_mask"):
        prompt_of_inputs({"input_ids": [4], "attention_mask": [1]})
    with pytest.raises(InvalidArgument, match="inputs"):
        prompt_of_inputs([4])


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_tensors_and_their_capsules_which_can_be_read_twice(shape: tuple[int, ...], dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(10, 15, dtype=getattr(torch, dtype)).reshape(shape)
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    assert token_ids_of(tensor) == token_ids_of(capsule) == token_ids_of(capsule) == [10, 11, 12, 13, 14]


def test_a_capsule_with_strides_and_an_offset() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(10)[1::3]
    assert token_ids_of(torch.utils.dlpack.to_dlpack(tensor)) == [1, 4, 7]
    assert token_ids_of(torch.utils.dlpack.to_dlpack(torch.zeros(0, dtype=torch.int64))) == []


def test_capsules_that_cannot_be_read() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(3), torch.zeros((2, 3), dtype=torch.int64)):
        with pytest.raises(InvalidArgument):
            token_ids_of(torch.utils.dlpack.to_dlpack(tensor))
    taken = torch.utils.dlpack.to_dlpack(torch.zeros(3, dtype=torch.int64))
    torch.utils.dlpack.from_dlpack(taken)
    with pytest.raises(InvalidArgument, match="taken over"):
        token_ids_of(taken)
