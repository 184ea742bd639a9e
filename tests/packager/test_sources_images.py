"""`skerry_packager.sources` on a folder of images."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skerry_contract.errors import DataError, InputError
from skerry_packager.datasets import match_dataset
from skerry_packager.inspect import TensorInfo
from skerry_packager.sources.options import SourceOptions
from skerry_packager.sources.read import read_source
from skerry_packager.sources.samples import Samples

Shape = tuple[int | str | None, ...]


def info(shape: Shape, dtype: str = "float32", name: str = "image") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def read(folder: Path, shape: Shape = ("N", 3, 4, 6), dtype: str = "float32", **options: Any) -> Samples:
    return read_source(folder, [info(shape, dtype)], SourceOptions(**options))


def paint(path: Path, colour: Sequence[int] = (255, 0, 51), size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(colour)).save(path)


def test_subfolders_are_classes_and_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/a.bmp", "cat/z.gif", "cat/deep/y.webp", "eel/x.jpg"):
        paint(tmp_path / name)
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"not looked at")
    (tmp_path / "notes.txt").write_text("ignored")
    found = read(tmp_path)
    assert found.class_names == ("cat", "dog", "eel")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    assert found.arrays["image"].shape == (5, 3, 4, 6)
    assert found.arrays["image"].dtype == np.float32
    np.testing.assert_allclose(found.arrays["image"][2, :, 0, 0], [1.0, 0.0, 0.2], atol=1e-6)
    data = match_dataset(found.arrays, [info(("N", 3, 4, 6))])
    assert data.feed(1)["image"].shape == (1, 3, 4, 6)


def test_the_models_own_order_of_classes_wins(tmp_path: Path) -> None:
    for name in ("dog/a.png", "cat/b.png"):
        paint(tmp_path / name)
    found = read(tmp_path, classes=("dog", "cow", "cat"))
    assert found.labels is not None
    assert (found.labels.tolist(), found.class_names) == ([2, 0], ("dog", "cow", "cat"))
    with pytest.raises(DataError, match="'dog' is none of the 2 classes"):
        read(tmp_path, classes=("cow", "cat"))


def test_subfolders_that_are_numbers_are_the_classes_and_that_is_said(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        paint(tmp_path / str(number) / "a.png")
    found = read(tmp_path)
    assert found.labels is not None
    assert (found.labels.tolist(), found.class_names) == ([0, 1, 10, 2], ())
    assert found.notes == (
        f"{tmp_path}: the subfolders 0, 1, 2, … are taken for the numbers of classes, counted from 0, or for"
        " values; if they are names, give all of them in the order of the output by --labels",
    )
    (tmp_path / "10").rename(tmp_path / "03")
    found = read(tmp_path)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 3, 1, 2]
    assert found.notes == (f"{tmp_path}: the subfolders 0 to 3 are the numbers of the classes",)
    named = read(tmp_path, classes=("2", "1", "0", "03"))
    assert named.labels is not None
    assert (named.labels.tolist(), named.notes) == ([2, 3, 1, 0], ())


def test_a_table_of_labels_beside_the_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        paint(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label\nsub/c.png,7\na.png,3\n")
    found = read(tmp_path)
    assert found.labels is not None
    assert found.labels.tolist() == [3, 7]
    assert found.notes == (f"{tmp_path}: 1 files that labels.csv does not name were left out",)
    (tmp_path / "labels.csv").write_text("a.png,0.5\nb.png,1\n")
    assert read(tmp_path).labels is not None
    np.testing.assert_array_equal(read(tmp_path).arrays["labels"], [0.5, 1.0])
    for table, says in (
        ("file,label\nz.png,1\n", "line 2: 'z.png' is not in the folder"),
        ("a.png,1\na.png,2\n", "line 2: 'a.png' is named twice"),
        ("a.png\n", "line 1: 1 columns"),
        ("a.png,\n", "has no label"),
        ("file,label\n", "names no file"),
    ):
        (tmp_path / "labels.csv").write_text(table)
        with pytest.raises(DataError, match=says):
            read(tmp_path)


def test_images_of_one_folder_have_no_labels_and_loose_ones_beside_classes_are_an_error(
    tmp_path: Path,
) -> None:
    paint(tmp_path / "one" / "a.png")
    assert read(tmp_path).labels is None
    paint(tmp_path / "two" / "b.png")
    paint(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"c\.png is in none"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("shape", "dtype", "want"),
    [
        ((1, 4, 6, 3), "uint8", (4, 6, 3)),
        ((None, 1, 4, 6), "float16", (1, 4, 6)),
        (("N", 4, 6, 1), "float32", (4, 6, 1)),
        ((4, 6, 3), "float32", (4, 6, 3)),
        (("N", 28, 28), "float32", (28, 28)),
        ((1, 4, 4, 6), "int8", (4, 4, 6)),
    ],
)
def test_layout_channels_and_type_follow_from_the_model(
    tmp_path: Path, shape: Shape, dtype: str, want: tuple[int, ...]
) -> None:
    paint(tmp_path / "a.png")
    found = read(tmp_path, shape, dtype).arrays["image"]
    assert (found.shape[1:], found.dtype) == (want, np.dtype(dtype))
    match_dataset({"image": found}, [info(shape, dtype)])


def test_numbers_are_scaled_as_told_and_recorded(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    pixel = read(tmp_path, scale="-1..1", mean=(0.5,), std=(0.5, 1, 2)).arrays["image"][0, :, 0, 0]
    np.testing.assert_allclose(pixel, [(1 - 0.5) / 0.5, -1.5, (0.2 * 2 - 1 - 0.5) / 2], atol=1e-6)
    found = read(tmp_path, scale="0..255", bgr=True)
    np.testing.assert_allclose(found.arrays["image"][0, :, 0, 0], [51, 0, 255])
    assert found.preprocessing == {
        "kind": "image", "input": "image", "layout": "CHW", "height": 4, "width": 6, "channels": "BGR",
        "orientation": "exif", "resize": "stretch", "filter": "bilinear, antialiased", "scale": "0..255",
        "mean": [], "std": [], "dtype": "float32",
    }  # fmt: skip
    raw = read(tmp_path, dtype="int8").arrays["image"][0, :, 0, 0]
    assert raw.tolist() == [127, -128, -77]


def test_resizing_stretches_crops_or_pads(tmp_path: Path) -> None:
    """Left half black, right half white, twice as wide as high."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shape = ("N", 1, 8, 8)
    stretch, crop, pad = (
        read(tmp_path, shape, resize=how).arrays["image"][0, 0] for how in ("stretch", "crop", "pad")
    )
    assert stretch[0, 0] == crop[0, 0] == 0
    assert stretch[0, -1] == crop[0, -1] == 1
    assert pad[0].max() == pad[-1].max() == 0
    assert pad[4, -1] == 1


def test_the_cameras_orientation_is_honoured(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    found = read(tmp_path, ("N", 1, 16, 8)).arrays["image"][0, 0]
    assert found[0].max() < 0.1
    assert found[-1].min() > 0.9


def test_sixteen_bits_palettes_transparency_and_animations_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 51 << 8, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (6, 4), (51, 51, 51, 0)).save(tmp_path / "glass.png")
    Image.new("RGB", (6, 4), (51, 51, 51)).quantize(4).save(tmp_path / "palette.png")
    frames = [Image.new("RGB", (6, 4), (grey,) * 3) for grey in (51, 200)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    found = read(tmp_path).arrays["image"]
    np.testing.assert_allclose(found, 0.2, atol=0.01)


def test_more_files_than_rows_are_spread_over_the_classes(tmp_path: Path) -> None:
    for number in range(12):
        paint(tmp_path / f"class{number // 4}" / f"{number}.png")
    found = read(tmp_path, max_rows=6)
    assert found.labels is not None
    assert np.bincount(found.labels).tolist() == [2, 2, 2]
    assert found.notes == (f"{tmp_path}: 6 of 12 rows were taken, evenly spread",)
    small = read(tmp_path, max_bytes=5 * 4 * 3 * 4 * 6)
    assert len(small.arrays["image"]) == 5
    assert small.notes == (f"{tmp_path} (memory): 5 of 12 rows were taken, evenly spread",)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ([info(("N", 3, "H", "W"))], {}, "leaves the height of images open"),
        ([info(("N", 3, 4, 6))], {"size": (5, 6)}, "takes images with a height of 4, not 5"),
        ([info(("N", 784))], {}, r"no input takes images: 'image' \['N', 784\]"),
        ([info(("N", 3, 4, 6)), info(("N", 3, 4, 6), name="b")], {}, "several inputs could take images"),
        ([info(("N", 3, 4, 6))], {"input": "b"}, "and is named 'b'"),
        ([info(("N", 3, 4, 6))], {"resize": "bend"}, "resize 'bend' is not known"),
        ([info(("N", 3, 4, 6))], {"scale": "0..2"}, "scale '0..2' is not known"),
        ([info(("N", 3, 4, 6))], {"mean": (1.0, 2.0)}, "--mean has 2 numbers for 3 channels"),
        ([info(("N", 3, 4, 6))], {"std": (0.0,)}, "not above 0"),
        ([info(("N", 3, 4, 6), "uint8")], {"mean": (1.0,)}, "--mean is for inputs of floats"),
        ([info(("N", 1, 4, 6))], {"bgr": True}, "has no colours"),
        ([info(("N", 3, 4, 6))], {"hop": 4}, "--hop is for sound"),
    ],
)
def test_options_that_do_not_fit_say_why(
    tmp_path: Path, inputs: list[TensorInfo], options: dict[str, Any], says: str
) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(InputError, match=says) as caught:
        read_source(tmp_path, inputs, SourceOptions(**options))
    assert caught.value.hint


def test_open_sizes_are_given(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    assert read(tmp_path, ("N", 3, "H", "W"), size=(5, 7)).arrays["image"].shape == (1, 3, 5, 7)
    two = [info(("N", 3, 4, 6)), info(("N", 3, 8, 8), name="b")]
    assert set(read_source(tmp_path, two, SourceOptions(input="b")).arrays) == {"b"}


def test_broken_files_are_named(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", size=(200, 200))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for content, says in ((whole[:400], "broken"), (b"GIF89", "no image of a known"), (b"", "no image of")):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.png is {says}"):
            read(tmp_path)


@pytest.mark.attack
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match=r"bomb\.png (has 3,600,000,000 pixels|is broken: .*exceeds)"):
        read(tmp_path)
    Image.new("1", (9000, 8000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="72,000,000 pixels, and at most 64,000,000"):
        read(tmp_path)


@pytest.mark.attack
def test_links_pipes_and_other_formats_do_no_harm(tmp_path: Path) -> None:
    """A loop of folders is not followed, a pipe is not waited for, a name does not choose the decoder."""
    paint(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    assert len(read(tmp_path / "in").arrays["image"]) == 1
    os.mkfifo(tmp_path / "in" / "b.png")
    with pytest.raises(DataError, match=r"b\.png is no regular file"):
        read(tmp_path / "in")
    (tmp_path / "in" / "b.png").unlink()
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "in" / "b.png")
    with pytest.raises(DataError, match=r"b\.png cannot be read"):
        read(tmp_path / "in")
    (tmp_path / "in" / "b.png").unlink()
    (tmp_path / "in" / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match=r"b\.png is no image of a known format"):
        read(tmp_path / "in")


def test_a_folder_without_data_or_with_two_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither images"):
        read(tmp_path)
    paint(tmp_path / "a.png")
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(DataError, match="both images and sound"):
        read(tmp_path)
