"""Tensor files: the safetensors layout, written the same way every time and read without a gap."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry_contract.errors import ManifestError
from skerry_contract.manifest import DATATYPES
from skerry_contract.tensors import DTYPE_OF_DATATYPE, ITEM_SIZES, Tensor, read_tensors, write_tensors

NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4",
    "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
ARRAYS = st.sampled_from(sorted(NUMPY)).flatmap(
    lambda dtype: st.tuples(
        st.just(dtype),
        hnp.arrays(np.dtype(NUMPY[dtype]), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)),
    )
)


def file(header: object, body: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=4
    )
)
def test_arrays_are_read_back(arrays: dict[str, tuple[str, np.ndarray]]) -> None:
    data = write_tensors({name: Tensor(dtype, a.shape, a.tobytes()) for name, (dtype, a) in arrays.items()})
    found = read_tensors(data)
    assert set(found) == set(arrays)
    for name, (dtype, array) in arrays.items():
        read = np.frombuffer(found[name].data, NUMPY[found[name].dtype]).reshape(found[name].shape)
        assert (found[name].dtype, read.shape) == (dtype, array.shape)
        assert read.tobytes() == array.tobytes()


def test_the_order_in_which_tensors_are_given_does_not_matter() -> None:
    a, b = Tensor("U8", (1,), b"a"), Tensor("U8", (2,), b"bb")
    assert write_tensors({"a": a, "b": b}) == write_tensors({"b": b, "a": a})


def test_the_layout_is_pinned() -> None:
    head = b'{"x":{"data_offsets":[0,4],"dtype":"I32","shape":[1]}}'
    assert (
        write_tensors({"x": Tensor("I32", (1,), b"\1\2\3\4")})
        == b"\x38" + bytes(7) + head + b"  " + b"\1\2\3\4"
    )


def test_the_data_begin_at_a_multiple_of_8() -> None:
    for length in range(1, 20):
        data = write_tensors({"x" * length: Tensor("F64", (1,), bytes(8))})
        assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0


def test_item_sizes_are_those_of_numpy() -> None:
    assert {dtype: np.dtype(code).itemsize for dtype, code in NUMPY.items()} == ITEM_SIZES


def test_every_datatype_of_a_manifest_but_bytes_has_a_dtype() -> None:
    assert set(DTYPE_OF_DATATYPE) == set(DATATYPES) - {"BYTES"}
    assert set(DTYPE_OF_DATATYPE.values()) == set(ITEM_SIZES)


def test_metadata_of_other_writers_is_skipped() -> None:
    assert read_tensors(file({"__metadata__": {"format": "np"}, "x": tensor(0, 1)}, b"a")) == {
        "x": Tensor("U8", (1,), b"a")
    }


BAD = {
    "empty": b"",
    "seven bytes": bytes(7),
    "header longer than the file": struct.pack("<Q", 9) + b"{}",
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header is no JSON": file(b"xx"),
    "header is a list": file([]),
    "header with a name twice": file(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{}}'),
    "header is deep": file(b'{"x":' * 9 + b"1" + b"}" * 9),
    "tensor is a list": file({"x": []}),
    "dtype missing": file({"x": {"shape": [0], "data_offsets": [0, 0]}}),
    "dtype unknown": file({"x": tensor(0, 1, dtype="BF16")}, b"a"),
    "shape negative": file({"x": tensor(0, 1, [-1])}, b"a"),
    "shape a fraction": file({"x": tensor(0, 1, [1.0])}, b"a"),  # type: ignore[list-item]
    "shape is true": file({"x": tensor(0, 1, [True])}, b"a"),
    "shape overflows": file({"x": tensor(0, 1, [2**40, 2**40])}, b"a"),
    "shape of 17 sizes": file({"x": tensor(0, 1, [1] * 17)}, b"a"),
    "shape too large": file({"x": tensor(0, 1, [2])}, b"a"),
    "shape too small": file({"x": tensor(0, 2, [1])}, b"ab"),
    "one offset": file({"x": {"dtype": "U8", "shape": [0], "data_offsets": [0]}}),
    "offsets reversed": file({"x": {"dtype": "U8", "shape": [0], "data_offsets": [1, 0]}}, b"a"),
    "offset negative": file({"x": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}, b"a"),
    "offset beyond the end": file({"x": tensor(0, 2)}, b"a"),
    "overlap": file({"x": tensor(0, 2), "y": tensor(1, 3)}, b"abc"),
    "the same bytes twice": file({"x": tensor(0, 2), "y": tensor(0, 2)}, b"ab"),
    "hole": file({"x": tensor(0, 1), "y": tensor(2, 3)}, b"abc"),
    "hole at the start": file({"x": tensor(1, 2)}, b"ab"),
    "trailing bytes": file({"x": tensor(0, 1)}, b"ab"),
    "bytes without a tensor": file({}, b"a"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    with pytest.raises(ManifestError):
        read_tensors(BAD[case])


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for candidate in (data, file(data)):
        with contextlib.suppress(ManifestError):
            read_tensors(candidate)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("x", Tensor("U8", (2,), b"a")),
        ("x", Tensor("BF16", (1,), b"ab")),
        ("x", Tensor("U8", (1,) * 17, b"a")),
        ("__metadata__", Tensor("U8", (1,), b"a")),
    ],
)
def test_the_writer_refuses_what_no_reader_accepts(name: str, bad: Tensor) -> None:
    with pytest.raises(ManifestError):
        write_tensors({name: bad})
