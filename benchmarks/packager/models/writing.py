"""Rendered text for the three models of PP-OCR: where is it, what does it say, which way up is it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .recipe import Data, copy_model

_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")
_TEXT = (
    "pump valve gateway sensor battery Motor Line Order Paid Total Berlin Zurich Madrid Lisbon harvest "
    "frost signal bridge window garden Monday Friday August winter Exit Stop Push Open Closed Danger "
    "Voltage 230V 50Hz 2026 1984 EUR USD 12.50 99.95 A4 B12 No.7 Room 404 Gate Level Press Start Reset "
    "weight kg length mm north"
)
_WORDS = _TEXT.split()


def _font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{_FACES[int(rng.integers(len(_FACES)))]}.ttf"), size)


def _line(rng: np.random.Generator, words: int) -> str:
    return " ".join(_WORDS[int(i)] for i in rng.integers(0, len(_WORDS), words))


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Paper and ink, far apart; one in three is light on dark."""
    paper, ink = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
    pair = tuple(map(int, paper)), tuple(map(int, ink))
    return pair if rng.integers(3) else (pair[1], pair[0])


def _noisy(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    array = np.asarray(picture, np.float32) + rng.standard_normal((*picture.size[::-1], 3)) * rng.uniform(
        0, 18
    )
    return np.clip(array, 0, 255)


def _strip(rng: np.random.Generator, text: str, height: int, width: int) -> np.ndarray:
    """One line of text that fills a strip of that height, cut or padded at the right; 0 to 255."""
    font = _font(rng, int(rng.integers(24, 40)))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = _colours(rng)
    picture = Image.new("RGB", (int(right - left) + 12, int(bottom - top) + 10), paper)
    ImageDraw.Draw(picture).text((6 - left, 5 - top), text, fill=ink, font=font)
    scaled = min(width, max(1, round(picture.width * height / picture.height)))
    strip = np.full((height, width, 3), 127.5, np.float32)
    strip[:, :scaled] = _noisy(picture.resize((scaled, height), Image.Resampling.BILINEAR), rng)
    return strip


def _signed(pictures: list[np.ndarray]) -> np.ndarray:
    """``[rows, 1, 3, height, width]`` from -1 to 1, as PP-OCR scales strips."""
    return (np.stack(pictures).transpose(0, 3, 1, 2)[:, None] / 127.5 - 1).astype(np.float32)


def make_recognition(folder: Path) -> Data:
    """Labels are the characters' numbers in the model's own alphabet, -1 behind the end."""
    import onnx

    model = onnx.load(
        copy_model("rapidocr_onnxruntime/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", folder)
    )
    alphabet = next(p.value for p in model.metadata_props if p.key == "character").split("\n")
    number = {character: at for at, character in enumerate(alphabet, 1)} | {" ": len(alphabet) + 1}
    if len(alphabet) == 6624 or alphabet[-1] == " ":
        number[" "] = alphabet.index(" ") + 1 if " " in alphabet else len(alphabet)
    rng = np.random.default_rng(31)
    rows, longest = 304, 24
    strips, labels = [], np.full((rows, longest), -1, np.int64)
    for row in range(rows):
        line = _line(rng, int(rng.integers(1, 4)))[:longest].strip()
        strips.append(_strip(rng, line, 48, 320))
        labels[row, : len(line)] = [number[character] for character in line]
    return Data({"x": _signed(strips)}, labels)


def make_orientation(folder: Path) -> Data:
    """Label 1: the strip is upside down."""
    copy_model("rapidocr_onnxruntime/rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", folder)
    rng = np.random.default_rng(32)
    labels = np.arange(464) % 2
    strips = []
    for label in labels:
        strip = _strip(rng, _line(rng, int(rng.integers(1, 4))), 48, 192)
        strips.append(strip[::-1, ::-1] if label else strip)
    return Data({"x": _signed(strips)}, labels)


def make_detection(folder: Path) -> Data:
    """A page with some lines on it; the label is where their letters are."""
    copy_model("rapidocr_onnxruntime/rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", folder)
    rng = np.random.default_rng(33)
    rows, side = 152, 224
    pages, masks = np.zeros((rows, 1, 3, side, side), np.float32), np.zeros((rows, side, side), np.int8)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for row in range(rows):
        paper, ink = _colours(rng)
        picture = Image.new("RGB", (side, side), paper)
        draw, top = ImageDraw.Draw(picture), int(rng.integers(4, 30))
        while top < side - 30:
            font = _font(rng, int(rng.integers(14, 28)))
            at = (int(rng.integers(2, 60)), top)
            text = _line(rng, int(rng.integers(1, 3)))
            draw.text(at, text, fill=ink, font=font)
            box = [int(edge) for edge in draw.textbbox(at, text, font=font)]
            # PP-OCR is trained on shrunken boxes.
            shrink = (box[3] - box[1]) // 5
            masks[row, box[1] + shrink : box[3] - shrink, box[0] + shrink : min(side, box[2]) - shrink] = 1
            top = box[3] + int(rng.integers(6, 40))
        pages[row, 0] = ((_noisy(picture, rng) / 255 - mean) / deviation).transpose(2, 0, 1)
    return Data({"x": pages}, masks)
