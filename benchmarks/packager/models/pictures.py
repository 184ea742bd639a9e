"""Photographs that come with scikit-learn and scikit-image, cut and lit at random, for MediaPipe's models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .recipe import Data, copy_model

# Where in the astronaut's photograph (512 x 512) a part of her is: left, top, right, bottom.
_PARTS = {
    "face": (130, 10, 330, 210),
    "eye": (205, 85, 265, 145),
    "body": (0, 0, 512, 512),
    "hand": (0, 300, 220, 512),
}


@cache
def _photographs() -> dict[str, Image.Image]:
    import skimage.data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    arrays = {"astronaut": skimage.data.astronaut(), "china": china, "flower": flower}
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def crops(part: str, height: int, width: int, rows: int, seed: int) -> np.ndarray:
    """``[rows, 1, height, width, 3]`` from 0 to 1: three of four show the part, the fourth something else."""
    rng = np.random.default_rng(seed)
    pictures = _photographs()
    taken = np.zeros((rows, 1, height, width, 3), np.float32)
    for row in range(rows):
        if row % 4 < 3:
            picture, (left, top, right, bottom) = pictures["astronaut"], _PARTS[part]
        else:
            picture = pictures[("china", "flower")[row // 4 % 2]]
            left, top = int(rng.integers(0, 300)), int(rng.integers(0, 200))
            right, bottom = left + 220, top + 220
        shift = (right - left) * 0.12
        moved = [int(edge + rng.uniform(-shift, shift)) for edge in (left, top, right, bottom)]
        picture = picture.rotate(
            rng.uniform(-12, 12), Image.Resampling.BILINEAR, center=((left + right) / 2, (top + bottom) / 2)
        )
        cut = (
            np.asarray(
                picture.crop((moved[0], moved[1], moved[2], moved[3])).resize(
                    (width, height), Image.Resampling.BILINEAR
                ),
                np.float32,
            )
            / 255
        )
        if rng.integers(2):
            cut = cut[:, ::-1]
        cut = np.clip(cut, 0, 1) ** rng.uniform(0.7, 1.5) + rng.standard_normal(cut.shape) * rng.uniform(
            0, 0.02
        )
        taken[row, 0] = np.clip(cut, 0, 1)
    return taken


def mediapipe(
    path: str, name: str, part: str, height: int, width: int, signed: bool = False
) -> Callable[[Path], Data]:
    """A `Make`; `signed` scales to -1 to 1, as MediaPipe's graph for that model does."""

    def make(folder: Path) -> Data:
        copy_model(f"mediapipe/mediapipe/modules/{path}", folder)
        pictures = crops(part, height, width, 192, 21 + height + width)
        return Data({name: pictures * 2 - 1 if signed else pictures})

    return make
