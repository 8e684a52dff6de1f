"""A trace's file: what is read of it, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.pipeline.bench.trace.trace_file import read_trace_file
from kvfold.plugins.contract.errors import RequestError
from tests.pipeline.bench.trace.made_up_traces import random_requests, write_requests

LINE = '{"timestamp": 5.5, "input_length": 600, "output_length": 7, "hash_ids": [3, 4]}'


def test_what_was_written_is_read(tmp_path: Path) -> None:
    requests = random_requests(0, 20)
    path = write_requests(tmp_path / "trace.jsonl", requests)
    assert list(read_trace_file(path)) == requests
    assert list(read_trace_file(path, 7)) == requests[:7]
    path.write_text(LINE)
    (only,) = read_trace_file(path)
    assert (only.timestamp, only.input_length, only.output_length, only.hash_ids) == (5.5, 600, 7, (3, 4))


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}\nnonsense\n")
    assert len(list(read_trace_file(path, 1))) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (LINE, "nonsense", "no JSON"),
        (LINE, "[1, 2]", "no object"),
        (LINE, "", "no JSON"),
        ('"hash_ids"', '"hashes"', "no hash_ids"),
        ("5.5", "-1", "timestamp is -1"),
        ("5.5", "true", "timestamp is True"),
        ("600", "0", "input_length is 0"),
        ("600", "1.5", "input_length is 1.5"),
        ("600", "1025", "2 hash_ids, and 1025 tokens are 3 blocks of 512"),
        (": 7", ": null", "output_length is None"),
        ("[3, 4]", '["3", "4"]', "hash_ids is no list of numbers"),
        ("[3, 4]", "34", "hash_ids is no list of numbers"),
    ],
)
def test_a_wrong_line_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}\n{LINE.replace(old, new)}\n{LINE}\n")
    with pytest.raises(RequestError, match=r"trace\.jsonl, line 2: .*Mooncake's form") as raised:
        list(read_trace_file(path))
    assert said in str(raised.value)


def test_a_file_that_is_cut_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for length in range(1, len(LINE)):
        path.write_text(f"{LINE}\n{LINE[:length]}")
        with pytest.raises(RequestError, match="line 2: the file ends within it; fetch the trace again"):
            list(read_trace_file(path))


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_bytes(b"")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, said in ((empty, "no request"), (binary, "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(RequestError, match=said):
            list(read_trace_file(path))
