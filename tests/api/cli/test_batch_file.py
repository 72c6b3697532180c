"""Rows in, rows out, and where a run that was broken off goes on."""

from pathlib import Path

import msgspec
import pytest

from millstream.api.cli.batch_file import InputRow, ResultRow, SampleRow, finished_rows, read_rows
from millstream.errors import InvalidArgument


def encode(*rows: ResultRow) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def result(index: int, custom_id: str | None = None, error: str | None = None) -> ResultRow:
    output = SampleRow(text="t", finish_reason="stop", output_tokens=1, token_ids=[1])
    return ResultRow(index=index, custom_id=custom_id, model="m", outputs=[output], error=error)


def test_rows_keep_what_they_say_and_carry_the_rest() -> None:
    rows = list(
        read_rows(
            [
                b'{"prompt": "a", "custom_id": "x", "params": {"n": 2}, "label": [1]}',
                b"  \n",
                b'{"prompt": [1, 2]}',
                b'{"messages": [{"role": "user", "content": "hi"}]}',
            ]
        )
    )
    assert [row.error for row in rows] == [None] * 3
    assert rows[0] == InputRow(index=0, custom_id="x", prompt="a", params={"n": 2}, extra={"label": [1]})
    assert rows[1].prompt == [1, 2]
    assert rows[2].index == 2
    assert [row.key for row in rows] == ["x", 1, 2]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[1]", "no JSON object"),
        (b'{"prompt": 3}', "malformed"),
        (b"{}", "either prompt or messages"),
        (b'{"prompt": "a", "messages": []}', "either prompt or messages"),
        (b'{"prompt": "a", "top_k": 1, "params": {"top_k": 1}}', "top_k stands in params, too"),
    ],
)
def test_a_bad_row_says_what_is_wrong(line: bytes, error: str) -> None:
    bad, good = read_rows([line, b'{"prompt": "next"}'])
    assert bad.error is not None
    assert error in bad.error
    assert good == InputRow(index=1, prompt="next")


def test_a_custom_id_names_one_row() -> None:
    first, second = read_rows([b'{"prompt": "a", "custom_id": "x"}', b'{"prompt": "b", "custom_id": "x"}'])
    assert first.error is None
    assert second.error == "custom_id 'x' occurs twice"
    assert second.key == 1


def test_finished_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert finished_rows(path, "m") == set()
    content = encode(result(0), result(1, "x"), result(2, error="no"))
    path.write_bytes(content)
    assert finished_rows(path, "m") == {0, "x", 2}
    assert path.read_bytes() == content


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = encode(result(0))
    path.write_bytes(whole + encode(result(1))[:-1])
    assert finished_rows(path, "m") == {0}
    assert path.read_bytes() == whole


def test_failed_rows_can_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(encode(result(0, error="no"), result(1)))
    assert finished_rows(path, "m", retry_failed=True) == {1}
    assert path.read_bytes() == encode(result(1))


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(encode(result(0)))
    with pytest.raises(InvalidArgument, match="results of other"):
        finished_rows(path, "other")
    path.write_bytes(b"my diary\n")
    with pytest.raises(InvalidArgument, match="line 1"):
        finished_rows(path, "m")
    assert path.read_bytes() == b"my diary\n"


def test_sampling_fields_may_stand_at_the_top_of_a_row_under_the_servers_names() -> None:
    (row,) = read_rows([b'{"prompt": "a", "max_tokens": 3, "params": {"n": 2}, "label": 1}'])
    assert row == InputRow(index=0, prompt="a", params={"max_tokens": 3, "n": 2}, extra={"label": 1})
