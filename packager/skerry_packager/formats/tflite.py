"""TFLite: packed as it came, and in the variants that its engines run well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..engine import Feed
from ..inspect import ModelInspection
from ..results import Target, VariantResult
from ..tflite.memory import predict_memory
from ..tflite.model import read_approved
from ..variants.candidate import Job, Outcome
from ..variants.tflite import VARIANT_NAMES, generate
from . import Facts, Prepared


class TfliteFormat:
    """See `skerry_packager.formats.ModelFormat`."""

    engine = "tflite"
    variant_names: Sequence[str] = VARIANT_NAMES

    def prepare(
        self, path: Path, inspection: ModelInspection, samples: Sequence[Feed], targets: Sequence[Target]
    ) -> Prepared:
        return Prepared(read_approved(path, inspection))

    def generate(self, job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        return generate(job)

    def mapped(self, parent: VariantResult) -> Outcome | None:
        return None

    def finish(self, data: bytes) -> bytes:
        return data

    def facts(self, data: bytes) -> Facts:
        return Facts(0, 0)

    def memory_bounds(
        self, data: bytes, feed: Feed, sizes: Mapping[str, int] | None = None
    ) -> tuple[int, int]:
        return predict_memory(data, {name: array.shape for name, array in feed.items()})


FORMAT = TfliteFormat()
