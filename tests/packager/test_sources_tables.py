"""`skerry_packager.sources` on tables: CSV and Parquet give the same arrays and the same refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from skerry_contract.errors import DataError, InputError
from skerry_packager.datasets import match_dataset
from skerry_packager.inspect import TensorInfo
from skerry_packager.sources.options import SourceOptions
from skerry_packager.sources.read import read_source
from skerry_packager.sources.samples import Samples


def info(name: str, *shape: int | str | None, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


X = info("x", "N", 2)
TABLE: dict[str, list[Any]] = {
    "width": [1.5, 2.0, -3.0], "height": [4.0, 5.25, 6.0], "label": ["cat", "dog", "cat"]
}  # fmt: skip


def write(folder: Path, form: str, table: dict[str, list[Any]]) -> Path:
    path = folder / f"table.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    else:
        separator = "\t" if form == "tsv" else ","
        rows = zip(*table.values(), strict=True)
        lines = [list(table), *[["" if cell is None else str(cell) for cell in row] for row in rows]]
        path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    return path


def read(path: Path, *inputs: TensorInfo, **options: Any) -> Samples:
    return read_source(path, inputs or [X], SourceOptions(**options))


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_columns_feed_one_input_and_words_become_classes(tmp_path: Path, form: str) -> None:
    found = read(write(tmp_path, form, TABLE))
    np.testing.assert_array_equal(found.arrays["x"], [[1.5, 4], [2, 5.25], [-3, 6]])
    assert found.arrays["x"].dtype == np.float32
    assert found.arrays["labels"].tolist() == [0, 1, 0]
    assert found.class_names == ("cat", "dog")
    assert found.preprocessing == {"kind": "table", "columns": {"x": ["width", "height"]}}
    assert len(match_dataset(found.arrays, [X])) == 3


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_are_picked_and_ordered(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, {**TABLE, "id": [1, 2, 3], "grade": [7, 8, 9]})
    found = read(path, columns=("height", "width"), label_column="grade")
    assert found.arrays["x"][0].tolist() == [4, 1.5]
    assert found.arrays["labels"].tolist() == [7, 8, 9]
    assert found.arrays["labels"].dtype.kind == "i"
    named = read(path, columns=("id", "grade"), label_column="label", classes=("dog", "cat"))
    assert named.arrays["labels"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_named_like_the_inputs_feed_them(tmp_path: Path, form: str) -> None:
    table: dict[str, list[Any]] = {
        "age": [30, 40],
        "pay": [1.5, None],
        "vector_1": [3, 4],
        "vector_0": [1, 2],
        "y": [0.5, 1.5],
    }
    inputs = [info("age", "N", 1, dtype="int64"), info("pay", None, 1), info("vector", 1, 2)]
    found = read(write(tmp_path, form, table), *inputs)
    assert found.arrays["age"].tolist() == [[30], [40]]
    assert found.arrays["age"].dtype == np.int64
    assert np.isnan(found.arrays["pay"][1, 0]), "a missing cell is NaN"
    assert found.arrays["vector"].tolist() == [[1, 3], [2, 4]]
    assert found.arrays["labels"].tolist() == [0.5, 1.5]
    assert len(match_dataset(found.arrays, inputs)) == 2


def test_lists_in_parquet_are_vectors(tmp_path: Path) -> None:
    vectors = [[1.0, 2.0], [3.0, 4.0]]
    for kind in (pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.float32(), 2)):
        column = pyarrow.array(vectors, kind)
        path = tmp_path / "t.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"x": column, "y": [1, 0]}), path)
        found = read(path)
        assert found.arrays["x"].tolist() == vectors
        assert found.arrays["labels"].tolist() == [1, 0]
    pyarrow.parquet.write_table(pyarrow.table({"x": [[1.0], [2.0, 3.0]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'x' differ in length"):
        read(tmp_path / "t.parquet")


def test_flat_columns_fill_the_shape_of_the_model(tmp_path: Path) -> None:
    table = {f"p{number}": [number, 10 + number] for number in range(4)}
    path = write(tmp_path, "csv", table)
    assert read(path, info("x", "N", 1, 2, 2)).arrays["x"].shape == (2, 1, 2, 2)
    assert read(path, info("x", "N", "T", 2)).arrays["x"].shape == (2, 2, 2)
    assert read(path, info("x", 4)).arrays["x"].shape == (2, 4)


def test_semicolons_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes('\ufeff"a b";c;label\r\n1;2;"x;y"\r\n\r\n3;NaN;z\r\n'.encode())
    found = read(tmp_path / "t.csv")
    assert found.class_names == ("x;y", "z")
    assert found.arrays["x"][0].tolist() == [1, 2]
    assert np.isnan(found.arrays["x"][1, 1])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_long_table_is_thinned_while_it_streams(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, {"a": list(range(5000)), "b": [0] * 5000})
    found = read(path, max_rows=1000)
    kept = found.arrays["x"][:, 0]
    assert 500 <= len(kept) <= 1000
    assert set(np.diff(kept)) == {8.0}
    assert found.notes == (f"{path}: {len(kept)} of 5000 rows were taken, evenly spread",)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("table", "inputs", "options", "says"),
    [
        ({**TABLE, "colour": ["red", "red", "blue"]}, [X], {}, "colour' (is no number|holds .*string)"),
        (TABLE, [info("x", "N", 3)], {}, r"has shape \['N', 3\] in the model, and its columns give 2"),
        (TABLE, [X], {"columns": ("depth",)}, "has no column 'depth'"),
        (TABLE, [X], {"label_column": "class"}, "has no column 'class'"),
        (TABLE, [info("width", 1), info("depth", 1)], {}, r"no columns for \['depth'\]; .*'height'"),
        ({"v_0": [1], "v_2": [2], "w": [1]}, [info("v", 2), info("w", 1)], {}, r"columns for \['v'\]"),
        ({"label": [1]}, [X], {}, "no column but the label"),
        ({"a": [1, 2], "b": [1, 2], "label": ["x", ""]}, [X], {}, "row 2 has no label"),
        ({"a": [], "b": []}, [X], {}, "has no rows"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path,
    form: str,
    table: dict[str, list[Any]],
    inputs: list[TensorInfo],
    options: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(write(tmp_path, form, table), *inputs, **options)
    assert caught.value.hint


def test_calibration_may_lack_the_label_column(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", {"a": [1], "b": [2]})
    assert read(path, label_column="class", label_required=False).labels is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2,3\n4,5,6\n", "first line has numbers and no names"),
        ("a,a\n1,2\n", "column 'a' is there twice"),
        ("a,\n1,2\n", "column '' has no name"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells, and the first line has 2"),
        ("a,b\n1,2\n3,four\n", "line 3: 'four' in column 'b' is no number"),
        ('a,b\n1,"2\n', "cannot be read: unexpected end of data"),
        ("", "is empty"),
    ],
)
def test_a_broken_csv_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path / "t.csv")
    assert caught.value.hint


@pytest.mark.attack
def test_hostile_tables_end_in_errors(tmp_path: Path) -> None:
    huge = b"a,b\n1," + b"9" * 300_000 + b"\n"
    for content, says in (
        (huge, "field larger than field limit"),
        (b"a,b\n1,\xff\xfe\n", "cannot be read"),
        (b"a,b\n1,2\x00\n", "cannot be read|no number"),
        (b"," * 200_000 + b"\n", "200,001 cells"),
    ):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DataError, match=says):
            read(tmp_path / "t.csv")
    with pytest.raises(DataError, match="GB are read"):
        read(write(tmp_path, "csv", {f"c{n}": [0] * 50 for n in range(100)}), max_bytes=10_000)
    whole = write(tmp_path, "parquet", {"a": [0.0] * 100_000, "b": [0.0] * 100_000}).read_bytes()
    assert len(whole) < 10_000, "a column of zeros is a bomb"
    with pytest.raises(DataError, match=r"GB are read"):
        read(tmp_path / "table.parquet", max_bytes=1000)
    zeros = pyarrow.array([[0.0] * 2_000_000], pyarrow.list_(pyarrow.float64()))
    pyarrow.parquet.write_table(pyarrow.table({"x": zeros}), tmp_path / "list.parquet")
    assert (tmp_path / "list.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"GB are read"):
        read(tmp_path / "list.parquet", max_bytes=10_000_000)
    for cut in (0, 4, 100, len(whole) - 9):
        (tmp_path / "t.parquet").write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "t.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "parquet", TABLE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="not installed") as caught:
        read(path)
    assert "pip install 'skerry[parquet]'" in caught.value.hint
