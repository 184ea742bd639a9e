"""JSON is read as if hostile, also when it is signed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.errors import ManifestError
from skerry_contract.strict_json import Reader, canonical, loads

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


def read(data: bytes) -> Any:
    return loads(data, max_bytes=1 << 16, max_depth=8, what="it")


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert loads(canonical(value), max_bytes=1 << 20, max_depth=99, what="it") == value


@given(VALUES)
def test_the_written_form_is_a_fixed_point(value: Any) -> None:
    data = canonical(value)
    assert canonical(loads(data, max_bytes=1 << 20, max_depth=99, what="it")) == data


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b"// a\n{}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b'"\xed\xa0\x80"', "not JSON"),
        (b'"\\ud800"', "not JSON"),
        (b'{"\\uDFFF":1}', "not JSON"),
        (b'{"a":1,"a":1}', "the key 'a' twice"),
        (b'{"x":{"a":1,"\\u0061":2}}', "the key 'a' twice"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "Infinity"),
        (b"1e999", "beyond float64"),
        (b"-1e999", "beyond float64"),
        (b"1" * 21, "an integer of 21 digits"),
        (b"[" * 9 + b"]" * 9, "deeper than 8"),
        (b"[" * 60_000, "deeper than 8"),
        (b'{"a":' * 5000, "deeper than 8"),
        (b" " * ((1 << 16) + 1), "at most 65536"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        read(data)


def test_brackets_in_strings_do_not_nest() -> None:
    assert read(b'["[[[[[[[[[[[\\"[[[[[\\\\"]') == ['[[[[[[[[[[["[[[[[\\']


def test_a_pair_of_escaped_surrogates_is_one_character() -> None:
    assert read(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = read(data)
    except ManifestError:
        return
    assert canonical(value) == canonical(json.loads(data))


def test_a_reader_keeps_what_nobody_took() -> None:
    reader = Reader({"known": 1, "new": [2]}, "it")
    assert reader.take("known", int) == 1
    assert reader.rest() == {"new": [2]}


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        (int, True, "not a boolean"),
        (int, 1.0, "not float"),
        (int, "1", "not str"),
        (str, None, "not null"),
        (dict, [], "not list"),
        (bool, 1, "not int"),
        (float, "1.0", "not str"),
    ],
)
def test_a_reader_does_not_convert(kind: type, value: object, problem: str) -> None:
    with pytest.raises(ManifestError, match=rf"it\.key must be {kind.__name__}, {problem}"):
        Reader({"key": value}, "it").take("key", kind)


def test_a_whole_number_may_stand_for_a_float() -> None:
    assert repr(Reader({"key": 1}, "it").take("key", float)) == "1.0"
