"""`skerry_packager.sources` on a folder of WAV files."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_contract.errors import DataError, InputError
from skerry_packager.datasets import match_dataset
from skerry_packager.inspect import TensorInfo
from skerry_packager.sources.options import SourceOptions
from skerry_packager.sources.read import read_source
from skerry_packager.sources.resample import resample
from skerry_packager.sources.samples import Samples

RATE = 16_000


def info(*shape: int | str | None, dtype: str = "float32", name: str = "sound") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def tone(seconds: float = 0.1, hertz: float = 1000, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, signal: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.rint(np.repeat(signal, channels) * 2.0 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        whole += 128
    data = whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)


def read(folder: Path, *inputs: TensorInfo, **options: Any) -> Samples:
    return read_source(folder, inputs or [info("N", 400)], SourceOptions(**options))


@pytest.mark.parametrize(("width", "accuracy"), [(1, 8e-3), (2, 4e-5), (3, 2e-7), (4, 1e-7)])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_depth_of_pcm_gives_the_same_sound(
    tmp_path: Path, width: int, accuracy: float, channels: int
) -> None:
    write(tmp_path / "a.wav", tone(), width=width, channels=channels)
    found = read(tmp_path).arrays["sound"]
    assert (found.shape, found.dtype) == ((4, 400), np.dtype(np.float32))
    np.testing.assert_allclose(found.ravel(), tone(), atol=accuracy)


def test_windows_overlap_by_the_hop_and_carry_the_label_of_their_file(tmp_path: Path) -> None:
    write(tmp_path / "noise" / "b.wav", tone(0.05))
    write(tmp_path / "speech" / "a.wav", tone(0.1))
    found = read(tmp_path, hop=200)
    assert found.class_names == ("noise", "speech")
    assert found.labels is not None
    assert found.labels.tolist() == [0] * 3 + [1] * 7
    speech = found.arrays["sound"][3:]
    np.testing.assert_array_equal(speech[1][:200], speech[0][200:])
    assert any("windows of one file are alike" in note for note in found.notes)
    assert found.preprocessing == {
        "kind": "sound", "input": "sound", "sample_rate": RATE, "channels": "mean", "window": 400, "hop": 200,
        "scale": "-1..1", "dtype": "float32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "want"),
    [
        ((1, 400), "float32", {}, (4, 400)),
        (("N", 1, 400), "float32", {}, (4, 1, 400)),
        (("N", 400, 1), "float16", {}, (4, 400, 1)),
        ((400,), "float32", {}, (4, 400)),
        (("N", "T"), "float32", {"window": 800}, (2, 800)),
        ((1, 400), "int16", {}, (4, 400)),
    ],
)
def test_the_window_and_the_type_follow_from_the_model(
    tmp_path: Path,
    shape: tuple[int | str | None, ...],
    dtype: str,
    options: dict[str, Any],
    want: tuple[int, ...],
) -> None:
    write(tmp_path / "a.wav", tone())
    found = read(tmp_path, info(*shape, dtype=dtype), **options).arrays["sound"]
    assert (found.shape, found.dtype) == (want, np.dtype(dtype))
    if dtype == "int16":
        assert found.max() == 16384
    match_dataset({"sound": found}, [info(*shape, dtype=dtype)])


def test_a_model_that_asks_for_the_rate_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", tone())
    inputs = [info(None, None), info(2, None, 128, name="state"), info(dtype="int64", name="sr")]
    found = read(tmp_path, *inputs, window=512)
    assert found.arrays["sr"].tolist() == [RATE] * 3
    assert "state" not in found.arrays


def test_each_file_is_a_sequence_of_a_stateful_model(tmp_path: Path) -> None:
    write(tmp_path / "no" / "a.wav", tone(0.1))
    write(tmp_path / "yes" / "b.wav", tone(0.05))
    inputs = [info(None, 400), info(2, None, 8, name="state")]
    found = read(tmp_path, *inputs, sequences=True)
    assert found.arrays["sound"].shape == (2, 4, 400)
    assert found.arrays["lengths"].tolist() == [4, 2]
    assert found.arrays["labels"].tolist() == [0, 1]
    assert not found.arrays["sound"][1, 2:].any()
    data = match_dataset(found.arrays, inputs, loops={"stateN": "state"})
    assert data.sequences
    assert (data.steps(0), data.steps(1)) == (4, 2)
    assert data.feed(1, 1)["sound"].shape == (1, 400)


def test_a_short_file_is_filled_up_and_said(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", tone(0.01))
    found = read(tmp_path)
    assert found.arrays["sound"].shape == (1, 400)
    assert "1 files are shorter than a window" in found.notes[0]


def test_other_rates_are_refused_or_resampled_if_told(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", tone())
    write(tmp_path / "b.wav", tone(0.1, rate=44_100), rate=44_100)
    with pytest.raises(DataError, match=r"b\.wav has 44100 Hz, and a\.wav has 16000 Hz") as caught:
        read(tmp_path)
    assert "--sample-rate" in caught.value.hint
    found = read(tmp_path, sample_rate=RATE)
    assert found.preprocessing["sample_rate"] == RATE
    first, second = np.split(found.arrays["sound"], 2)
    np.testing.assert_allclose(first.ravel()[100:-100], second.ravel()[100:-100], atol=2e-3)


@pytest.mark.parametrize(
    ("given", "wanted"), [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (16_000, 22_050)]
)
def test_resampling_keeps_tones_below_the_band_and_removes_those_above(given: int, wanted: int) -> None:
    kept = resample(tone(0.2, 1000, given), given, wanted)
    assert len(kept) == pytest.approx(0.2 * wanted, abs=1)
    middle = slice(200, -200)
    np.testing.assert_allclose(kept[middle], tone(0.2, 1000, wanted)[: len(kept)][middle], atol=1e-3)
    if given > wanted:
        above = resample(tone(0.2, 0.6 * wanted, given), given, wanted)
        assert np.abs(above[middle]).max() < 1e-3


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ([info("N", "T")], {}, "leaves the number of samples open"),
        ([info("N", 400)], {"window": 300}, "takes windows of 400 samples, not 300"),
        ([info("N", 40, 80)], {}, "no input takes windows of sound"),
        ([info("N", 400), info("N", 9, name="b")], {}, "several inputs could take sound"),
        ([info("N", 400)], {"hop": -1}, "out of range"),
        ([info("N", 400)], {"sample_rate": 10**7}, "out of range"),
        ([info("N", 400)], {"sample_rate": 100}, "is not resampled to 100 Hz"),
        ([info("N", 400)], {"mean": (0.5,)}, "--mean is for images"),
    ],
)
def test_options_that_do_not_fit_say_why(
    tmp_path: Path, inputs: list[TensorInfo], options: dict[str, Any], says: str
) -> None:
    write(tmp_path / "a.wav", tone())
    with pytest.raises(InputError, match=says) as caught:
        read(tmp_path, *inputs, **options)
    assert caught.value.hint


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", tone())
    whole = (tmp_path / "a.wav").read_bytes()
    floats = whole[:20] + (3).to_bytes(2, "little") + whole[22:]
    for content, says in (
        (whole[:-100], "is truncated"),
        (whole[:44], "is truncated"),
        (whole[:20], "plain PCM: the file ends"),
        (floats, "plain PCM: unknown format: 3"),
        (b"ID3 no wave", "plain PCM"),
    ):
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.wav {says}|a\.wav is no WAV file of {says}"):
            read(tmp_path)
    write(tmp_path / "a.wav", np.zeros(0))
    with pytest.raises(DataError, match=r"a\.wav is empty"):
        read(tmp_path)


@pytest.mark.attack
def test_a_small_file_cannot_fill_the_memory_by_its_hop_or_rate(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(200_000))
    with pytest.raises(DataError, match="GB are read"):
        read(tmp_path, info("N", 16_000), hop=1)
    write(tmp_path / "a.wav", np.zeros(200_000), rate=1)
    with pytest.raises((DataError, InputError), match=r"GB are read|not resampled"):
        read(tmp_path, sample_rate=48_000)
