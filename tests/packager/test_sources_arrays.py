"""`skerry_packager.sources` on arrays: .npz, .npy, functions; and which options and paths are refused."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_contract.errors import DataError, InputError
from skerry_packager.inspect import TensorInfo
from skerry_packager.sources.options import SourceOptions
from skerry_packager.sources.read import read_source
from skerry_packager.sources.samples import Samples

INPUT = TensorInfo(name="x", dtype="float32", shape=("N", 4))
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


def read(source: Any, **options: Any) -> Samples:
    return read_source(source, [INPUT], SourceOptions(**options))


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(f"import numpy as np\n\n{body}")
    monkeypatch.chdir(folder)


def test_npz_npy_and_a_mapping_give_the_same_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS, y=np.arange(6))
    np.savez_compressed(tmp_path / "c.npz", x=np.asfortranarray(ROWS), targets=np.arange(6))
    np.save(tmp_path / "d.npy", ROWS)
    for source in (tmp_path / "d.npz", str(tmp_path / "c.npz"), {"x": ROWS, "labels": np.arange(6)}):
        found = read(source)
        np.testing.assert_array_equal(found.arrays["x"], ROWS)
        assert found.labels is not None
        np.testing.assert_array_equal(found.labels, np.arange(6))
    np.testing.assert_array_equal(read(tmp_path / "d.npy").arrays["x"], ROWS)


def test_empty_and_scalar_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((0, 4), np.float32), rate=np.int64(7))
    found = read(tmp_path / "d.npz").arrays
    assert (found["x"].shape, int(found["rate"])) == ((0, 4), 7)


def test_an_input_that_is_called_like_labels_stays_an_input() -> None:
    named = TensorInfo(name="y", dtype="float32", shape=("N", 4))
    assert set(read_source({"y": ROWS}, [named], SourceOptions()).arrays) == {"y"}


@pytest.mark.parametrize(
    "body",
    [
        "def rows():\n    return {'x': np.ones((3, 4)), 'y': [0, 1, 2]}\n",
        "def rows():\n    return np.ones((3, 4)), np.arange(3)\n",
        "def rows():\n    for row in range(3):\n        yield {'x': np.ones(4), 'y': row}\n",
        "def rows():\n    for row in range(3):\n        yield np.ones(4), row\n",
    ],
    ids=["mapping", "pair", "generator of mappings", "generator of pairs"],
)
def test_a_function_returns_or_yields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, request: pytest.FixtureRequest
) -> None:
    name = f"loader_{abs(hash(request.node.name))}"
    write_module(tmp_path, monkeypatch, name, body)
    found = read(f"{name}:rows")
    assert found.arrays["x"].shape == (3, 4)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2]


def test_an_endless_stream_is_cut_by_the_memory_and_a_long_one_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(
        tmp_path, monkeypatch, "streams",
        "def long():\n    for row in range(1000):\n        yield np.array([row, row])\n\n"
        "def wide():\n    while True:\n        yield np.zeros(100_000)\n",
    )  # fmt: skip
    found = read("streams:long", max_rows=100)
    kept = found.arrays["x"][:, 0]
    assert 50 <= len(kept) <= 100
    assert len(set(np.diff(kept))) == 1, "evenly spread"
    assert found.notes == (f"streams:long: {len(kept)} of 1000 rows were taken, evenly spread",)
    with pytest.raises(DataError, match="GB are read"):
        read("streams:wide", max_bytes=10_000_000)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def rows():\n    return 3\n", "gave int, no array and no mapping"),
        ("def rows():\n    raise KeyError('nope')\n", "failed: KeyError: 'nope'"),
        ("def rows():\n    yield np.zeros(4)\n    yield np.zeros(5)\n", r"row 1 has shape \[5\]"),
        ("def rows():\n    yield {'x': 1}\n    yield {'z': 1}\n", r"row 1 has \['z'\]"),
        ("def rows():\n    yield from ()\n", "yields no row"),
        ("def rows():\n    raise SystemExit(0)\n", "failed: SystemExit: 0"),
    ],
)
def test_a_function_that_misbehaves_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str, request: pytest.FixtureRequest
) -> None:
    name = f"broken_{abs(hash(request.node.name))}"
    write_module(tmp_path, monkeypatch, name, body)
    with pytest.raises(DataError, match=says):
        read(f"{name}:rows")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.npz", "no such file or folder"),
        ("data.txt", "this form of data is not known"),
        ("no_such_module:rows", "No module named"),
        ("os.path:nothing", "has no function 'nothing'"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("1")
    with pytest.raises(InputError, match=says):
        read(source)


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"mean": (0.5,)}, "--mean is for images"), ({"hop": 3}, "--hop is for sound"),
     ({"input": "x"}, "--input is for images or sound")],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        read({"x": ROWS}, **options)


@pytest.mark.attack
def test_an_archive_that_unpacks_to_terabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(npy_header((50_000_000,)))
        for _ in range(50):
            file.write(bytes(1_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="at most"):
        read(path, max_bytes=10_000_000)


@pytest.mark.attack
@pytest.mark.parametrize("shape", [(10**15,), (2**40, 2**40), (7,)])
def test_a_header_that_promises_more_than_the_file_holds_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    (tmp_path / "d.npy").write_bytes(npy_header(shape) + bytes(12))
    with pytest.raises(DataError, match=r"header promises|is truncated"):
        read(tmp_path / "d.npy")


@pytest.mark.attack
def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "d.npz", x=np.array([print], dtype=object))
    for name in ("d.npy", "d.npz"):
        with pytest.raises(DataError, match="Python objects"):
            read(tmp_path / name)


@pytest.mark.attack
def test_broken_files_loops_and_pipes_are_errors_and_hang_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    whole = (tmp_path / "d.npz").read_bytes()
    for name, content in (("cut.npz", whole[:-30]), ("no.npz", b"no zip"), ("empty.npy", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / name)
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("loop.npy", "pipe.csv"):
        with pytest.raises(DataError, match=r"cannot be read|no regular file"):
            read(tmp_path / name)


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()
