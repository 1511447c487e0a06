"""One document, one byte string."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.envelope import strict_json
from testbed.envelope.errors import MalformedError

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


@given(DOCUMENTS)
def test_what_is_written_is_read_back_and_written_the_same_again(document: Any) -> None:
    data = strict_json.dumps(document)
    read = strict_json.loads(data, "document")
    assert read == document
    assert strict_json.dumps(read) == data
    assert json.loads(data) == document


@pytest.mark.parametrize(
    ("data", "named"),
    [
        pytest.param(b'{"a":1,"a":2}', "duplicate key 'a'", id="a duplicate key"),
        pytest.param(b'{"b":{"a":1,"a":1}}', "duplicate key 'a'", id="a duplicate key inside, even with equal values"),
        pytest.param(b'{"a":NaN}', "NaN", id="NaN"),
        pytest.param(b'{"a":-Infinity}', "-Infinity", id="infinity"),
        pytest.param(b'{"a":1.0}', "1.0", id="a float that is whole"),
        pytest.param(b'{"a":1e3}', "1e3", id="an exponent"),
        pytest.param(b'{"a":9007199254740992}', "integer of 16 digits", id="an integer other readers would round"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "integer of 5000 digits", id="an integer costly to read"),
        pytest.param(b'{"a":-0}', "canonical", id="minus zero"),
        pytest.param(b'{"a": 1}', "canonical", id="white space"),
        pytest.param(b'{"a":1}\n', "canonical", id="a final newline"),
        pytest.param(b'{"b":1,"a":2}', "canonical", id="keys out of order"),
        pytest.param(b'{"\\u0061":1}', "escape", id="an escaped letter"),
        pytest.param('{"a":"ä"}'.encode(), "not ASCII", id="a character outside ASCII"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', "not ASCII", id="a byte order mark"),
        pytest.param(b'{"a":"\x00"}', "control character", id="a control character"),
        pytest.param(b'{"a":"\x7f"}', "canonical", id="the delete character"),
        pytest.param(b'{"a":1', "delimiter", id="a truncated document"),
        pytest.param(b'{"a":1}{"a":1}', "Extra data", id="two documents"),
        pytest.param(b"", "Expecting value", id="nothing"),
        pytest.param(b"[" * 10_000, "brackets", id="brackets without end"),
        pytest.param(b"[" * 13 + b"]" * 13, "nested deeper than 12", id="thirteen lists in each other"),
        pytest.param(b'{"a":' * 13 + b"1" + b"}" * 13, "nested deeper than 12", id="thirteen objects in each other"),
        pytest.param(b'"' + b"a" * 16_384 + b'"', "refused unread", id="too many bytes"),
    ],
)
def test_refused(data: bytes, named: str) -> None:
    with pytest.raises(MalformedError, match=r"^document: ") as refusal:
        strict_json.loads(data, "document")
    assert named in str(refusal.value)


def test_brackets_inside_text_do_not_count_as_depth() -> None:
    document = {"a": "[[[[[[[[[[[[[[{{{{{{"}
    assert strict_json.loads(strict_json.dumps(document), "document") == document


@pytest.mark.parametrize(
    "value", [1.5, 2**53, -(2**53), "ä", 'quote"', "back\\slash", "new\nline", b"bytes", {1: 2}, object()]
)
def test_what_could_not_be_read_back_is_not_written(value: Any) -> None:
    with pytest.raises(MalformedError):
        strict_json.dumps({"a": [value]})
