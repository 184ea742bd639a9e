"""Any window summary, for property tests: the numbers add up, the shapes are those of one spec."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from skerry_contract.monitoring import SCORE_BINS
from skerry_contract.summary import (
    LATENCY_CELLS,
    EmbeddingSketch,
    FeatureSketch,
    Flags,
    HealthSketch,
    LabelCount,
    PredictionSketch,
    WindowSummary,
)

COUNT = st.integers(0, 2**40) | st.sampled_from([0, 1, 127, 128])
SUM = st.integers(0, 2**80)
SIGNED = st.integers(-(2**80), 2**80)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@dataclass(frozen=True, slots=True)
class Shape:
    """What windows of one spec have in common."""

    cells: tuple[int, ...]
    classes: int
    scores: bool
    dimensions: int
    norms: int


SHAPES = st.builds(
    Shape,
    cells=st.lists(st.integers(1, 20), max_size=3).map(tuple),
    classes=st.integers(0, 3),
    scores=st.booleans(),
    dimensions=st.integers(0, 4),
    norms=st.integers(2, 5),
)


def sparse(size: int, value: st.SearchStrategy[int] = COUNT) -> st.SearchStrategy[tuple[int, ...]]:
    """Counts that are mostly zero, as they are."""

    def fill(cells: dict[int, int]) -> tuple[int, ...]:
        return tuple(cells.get(i, 0) for i in range(size))

    return st.dictionaries(st.integers(0, max(size - 1, 0)), value, max_size=5).map(fill)


@st.composite
def windows(draw: st.DrawFn, shape: Shape | None = None, *, keep_unknown: bool = True) -> WindowSummary:
    """Any window of a shape."""
    shape = draw(SHAPES) if shape is None else shape
    counts = [draw(sparse(cells)) for cells in shape.cells]
    classes = draw(sparse(shape.classes)) if shape.classes else ()
    norms = draw(sparse(shape.norms))
    rows = max([*map(sum, counts), sum(classes), sum(norms)]) + draw(st.integers(0, 9))
    features = []
    for vector in counts:
        nans = draw(st.integers(0, rows - sum(vector)))
        low, high = sorted((draw(FLOAT32), draw(FLOAT32)))
        features.append(
            FeatureSketch(
                nulls=rows - sum(vector) - nans,
                nans=nans,
                counts=vector,
                total=draw(SIGNED),
                squares=draw(SUM),
                exceed_low=draw(SUM),
                exceed_high=draw(SUM),
                minimum=low,
                maximum=high,
            )
        )
    prediction = None
    if shape.classes:
        scores = [0] * (SCORE_BINS * shape.classes if shape.scores else 0)
        if scores:
            for index, count in enumerate(classes):
                scores[SCORE_BINS * index + draw(st.integers(0, SCORE_BINS - 1))] = count
        prediction = PredictionSketch(
            counts=classes, scores=tuple(scores), sum_max_score=draw(SUM), sum_calibrated=draw(SUM)
        )
    embedding = None
    if shape.dimensions and draw(st.booleans()):
        sums = tuple(draw(SIGNED) for _ in range(shape.dimensions))
        embedding = EmbeddingSketch(sums=sums, norms=norms)
    small = st.integers(0, 3)
    labels = draw(
        st.dictionaries(st.tuples(small, small, small), st.integers(1, 2**40), max_size=4).map(
            lambda found: tuple(
                LabelCount(window=w, truth=t, predicted=p, count=n) for (w, t, p), n in sorted(found.items())
            )
        )
    )
    unknown = st.dictionaries(st.integers(6, 2**20), st.binary(max_size=9), max_size=2)
    return WindowSummary(
        spec_hash=bytes(8),
        bundle=b"\1" * 8,
        boot=draw(st.sampled_from([bytes(16), b"\1" * 16])),
        seq=draw(small),
        flags=Flags(draw(st.integers(0, 7))),
        start_utc_ms=draw(st.integers(0, 3) | st.integers(0, 2**41)),
        start_mono_ms=draw(small),
        duration_ms=draw(st.integers(0, 2**40)),
        clock_quality=draw(st.integers(0, 2)),
        rows=rows,
        dropped=draw(COUNT),
        errors=draw(COUNT),
        features=tuple(features),
        prediction=prediction,
        embedding=embedding,
        labels=labels,
        health=HealthSketch(
            latency=draw(sparse(LATENCY_CELLS)),
            rss_kib=draw(COUNT),
            temperature_mc=draw(st.integers(-60_000, 150_000) | st.just(0)),
        ),
        unknown=tuple(sorted(draw(unknown).items())) if keep_unknown else (),
    )
