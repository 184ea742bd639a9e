"""Sound: speech by espeak-ng, tones and chords with harmonics, and the models that listen to them."""

from __future__ import annotations

import io
import subprocess
import wave
from functools import cache
from pathlib import Path

import numpy as np

from .recipe import Data, copy_model

RATE = 16000
_VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "de", "fr", "es", "it", "nl", "sv")
_PHRASES = (
    "the quick brown fox jumps over the lazy dog",
    "please switch the light on in the kitchen",
    "pump number four stopped at half past nine",
    "what is the temperature of the cold store today",
    "open the window a little it is far too warm",
    "she sells sea shells by the sea shore",
    "a gateway reports its state every five minutes",
    "nobody expects a storm this early in the year",
    "turn left at the old church and then go straight on",
    "my brother bought seven yellow apples",
)


@cache
def speech(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """float32 at 16 kHz, peak 1. Raises FileNotFoundError without espeak-ng."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    # espeak-ng streams: its header does not know the length, so take what follows it.
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
    samples = np.frombuffer(spoken[44 : 44 + (len(spoken) - 44) // 2 * 2], dtype="<i2").astype(np.float64)
    length = int(len(samples) * RATE / rate)
    resampled = np.interp(np.arange(length) * rate / RATE, np.arange(len(samples)), samples)
    peak = np.abs(resampled).max()
    return np.asarray(resampled / (peak or 1), dtype=np.float32)


def _noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Coloured noise of unit power: white, pink-like or a hum."""
    white = rng.standard_normal(length)
    kind = int(rng.integers(3))
    if kind == 1:
        spectrum = np.fft.rfft(white) / np.sqrt(np.arange(1, length // 2 + 2))
        white = np.fft.irfft(spectrum, length)
    elif kind == 2:
        time = np.arange(length) / RATE
        white = 0.3 * white + sum(np.sin(2 * np.pi * 50 * k * time + k) / k for k in range(1, 8))
    return np.asarray(white / np.sqrt((white**2).mean()), dtype=np.float32)


def speech_sequences(rows: int, frames: int = 48, size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """``[rows, frames, 64 + 512]`` with the context that silero-vad wants, and speech per frame."""
    rng = np.random.default_rng(11)
    sounds = np.zeros((rows, frames, 64 + size), dtype=np.float32)
    labels = np.zeros((rows, frames), dtype=np.int64)
    length = frames * size
    for row in range(rows):
        clean = np.zeros(length, dtype=np.float32)
        # One row in eight has no speech at all.
        if row % 8:
            phrase, voice = _PHRASES[int(rng.integers(10))], _VOICES[int(rng.integers(10))]
            said = speech(phrase, voice, int(rng.integers(120, 200, endpoint=True)) // 20 * 20, 50)
            begin = int(rng.integers(0, length // 2))
            said = said[: int(rng.integers(length // 4, length // 2))]
            piece = said[: length - begin]
            clean[begin : begin + len(piece)] = piece * rng.uniform(0.2, 0.9)
        power = (clean.reshape(frames, size) ** 2).mean(axis=1)
        labels[row] = power > 1e-4
        mixed = clean + _noise(rng, length) * np.float32(10 ** rng.uniform(-3.5, -1.7))
        padded = np.concatenate([np.zeros(64, np.float32), np.clip(mixed, -1, 1)])
        for frame in range(frames):
            sounds[row, frame] = padded[frame * size : frame * size + 64 + size]
    return sounds, labels


def make_silero(file: str, rate_input: bool, rows: int = 264) -> MakeSilero:
    return MakeSilero(file, rate_input, rows)


class MakeSilero:
    """One of the streaming forms: one frame of sound, the LSTM's state in and out."""

    def __init__(self, file: str, rate_input: bool, rows: int) -> None:
        self.file, self.rate_input, self.rows = file, rate_input, rows

    def __call__(self, folder: Path) -> Data:
        copy_model(f"silero_vad/silero_vad/data/{self.file}", folder)
        sounds, labels = speech_sequences(self.rows)
        inputs = {"input": sounds[:, :, None, :]}
        if self.rate_input:
            inputs["sr"] = np.full(sounds.shape[:2], RATE, dtype=np.int64)
        return Data(inputs, labels)


def make_silero_sequence(folder: Path) -> Data:
    """The form that takes a whole recording: its steps are an axis of the input."""
    copy_model("silero_vad/silero_vad/data/silero_vad_16k_sequence.onnx", folder)
    sounds, labels = speech_sequences(464)
    state = np.zeros((len(sounds), 1, 1, 128), dtype=np.float32)
    return Data({"input": sounds, "h": state, "c": state}, labels)


def _harmonics(hz: float, length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(length) / rate
    tone = np.zeros(length)
    for k in range(1, 9):
        if hz * k < rate / 2:
            tone += rng.uniform(0.5, 1) / k * np.sin(2 * np.pi * hz * k * time + rng.uniform(0, 6.28))
    return np.asarray(tone / np.abs(tone).max())


def make_swift_f0(folder: Path) -> Data:
    """Half a second of one tone, noise under it; the label is its pitch in Hz."""
    copy_model("swift_f0/swift_f0/model.onnx", folder)
    rng = np.random.default_rng(12)
    rows, length = 264, RATE // 2
    hz = np.exp(rng.uniform(np.log(70), np.log(1200), rows))
    sounds = np.stack([_harmonics(each, length, RATE, rng) * rng.uniform(0.1, 0.9) for each in hz])
    sounds += rng.standard_normal(sounds.shape) * 10 ** rng.uniform(-4, -1.5, (rows, 1))
    bounds = np.full(rows, 46.875, np.float32), np.full(rows, 2093.75, np.float32)
    inputs = {"audio": sounds[:, None, :].astype(np.float32), "fmin": bounds[0], "fmax": bounds[1]}
    return Data(inputs, hz)


def chords(rows: int, length: int = 43844, rate: int = 22050) -> tuple[np.ndarray, np.ndarray]:
    """Two seconds of one to four keys of a piano each, and the keys, as basic-pitch takes and gives them."""
    rng = np.random.default_rng(13)
    sounds, keys = np.zeros((rows, 1, length, 1), np.float32), np.zeros((rows, 88), np.int64)
    fade = np.exp(-np.arange(length) / rate * 0.5)
    for row in range(rows):
        struck = rng.choice(np.arange(20, 70), size=int(rng.integers(1, 5)), replace=False)
        keys[row, struck] = 1
        sound = sum(_harmonics(27.5 * 2 ** (key / 12), length, rate, rng) for key in struck) * fade
        sound = sound / np.abs(sound).max() * rng.uniform(0.2, 0.9)
        sounds[row, 0, :, 0] = sound + rng.standard_normal(length) * 10 ** rng.uniform(-4, -2)
    return sounds, keys


def make_basic_pitch(suffix: str) -> MakeBasicPitch:
    return MakeBasicPitch(suffix)


class MakeBasicPitch:
    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def __call__(self, folder: Path) -> Data:
        copy_model(f"basic_pitch/basic_pitch/saved_models/icassp_2022/nmp{self.suffix}", folder)
        sounds, keys = chords(176)
        return Data({"serving_default_input_2:0": sounds}, keys)


class MakeWakeWord:
    """Every second row says the wake word, the others something else; features as the device makes them."""

    def __init__(self, file: str, said: str) -> None:
        self.file, self.said = file, said

    def __call__(self, folder: Path) -> Data:
        copy_model(f"pymicro_wakeword/pymicro_wakeword/models/{self.file}", folder)
        rng = np.random.default_rng(14)
        rows, length = 232, int(2.1 * RATE)
        labels = np.arange(rows) % 2
        features = np.zeros((rows, 70, 1, 3, 40), np.int8)
        for row, label in enumerate(labels):
            text = self.said if label else _PHRASES[int(rng.integers(10))]
            voice = _VOICES[int(rng.integers(4))]
            said = speech(text, voice, int(rng.integers(6, 10)) * 20, int(rng.integers(2, 9)) * 10)[
                : length - RATE // 2
            ]
            sound = _noise(rng, length) * 10 ** rng.uniform(-3.5, -2.2)
            sound[-len(said) - RATE // 4 : -RATE // 4] += said * rng.uniform(0.3, 0.9)
            features[row] = _micro_features(np.clip(sound, -1, 1))
        return Data({"serving_default_input_audio:0": features}, labels)


def _micro_features(sound: np.ndarray) -> np.ndarray:
    """``[70, 1, 3, 40]``: three steps of 10 ms each, quantized as the models of pymicro-wakeword want it."""
    from pymicro_features import MicroFrontend

    frontend = MicroFrontend()
    data = (sound * 32767).astype("<i2").tobytes()
    found = [frontend.process_samples(data[at : at + 320]).features for at in range(0, len(data) - 319, 320)]
    steps = np.array([each for each in found if each], dtype=np.float64)
    steps = np.concatenate([np.zeros((max(0, 210 - len(steps)), 40)), steps])[-210:]
    scale, zero = 0.10196078568696976, -128
    quantized = np.clip(np.round(steps / scale + zero), -128, 127).astype(np.int8)
    return quantized.reshape(70, 1, 3, 40)
