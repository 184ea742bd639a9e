"""What packing found out, as data: every variant that was tried, what it costs, what it keeps, and who won.

Two kinds of figures live here. *Facts* (bytes, sizes, fidelity, predicted memory) are the same on every run
with the same inputs, and may go into the manifest. *Measurements* (`Latency`, `Memory`) differ from run to
run and from host to host: they belong into the run log, never into signed bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from skerry_contract.manifest import TensorSpec, Tolerance
from skerry_runtime.worker.bench_ops.work import Work

from .inspect import ModelInspection

FP32: Final = "fp32"
"""Name of the variant that every other one is compared with: the normalized source itself."""


class Objective(StrEnum):
    """What is minimized among the variants that pass."""

    SIZE = "size"
    LATENCY = "latency"
    RAM = "ram"


class Verdict(StrEnum):
    """One word per variant; the sentence is in `VariantResult.reason`."""

    OK = "ok"
    SKIPPED = "skipped"
    """Not made: it would have been a silent no-op, or cannot work on this model."""
    CRASH = "crash"
    """The engine did not load or run it."""
    NAN = "nan"
    """NaN or Inf where fp32 has none."""
    SHAPE = "shape"
    """Output names, types or shapes differ from fp32."""
    ACCURACY = "accuracy"
    """It loses more than allowed."""
    SLOW = "slow"
    """It did not finish within the time for it."""


def no_estimate(variant: VariantResult) -> Estimate | None:
    """Nothing is known of the latency on a target."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device profile as the packager's core needs it; 0 sets no limit."""

    name: str
    size_bytes: int = 0
    """Largest model file that fits: flash with two slots is the caller's arithmetic."""
    ram_bytes: int = 0
    """Free memory for a process that runs the model, with its engine."""
    latency_p95_us: int = 0
    """Budget on the device; the host's timing never decides it, the device's self-test does."""
    max_ir: int = 0
    """Highest ONNX IR version that the profile's engine loads."""
    max_opset: int = 0
    """Highest ai.onnx opset that the profile's engine loads."""
    arch: str = ""
    isa: tuple[str, ...] = ()
    """Instruction set flags, see `skerry_packager.profiles.ISA_FLAGS`."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """Inference library -> version, as in `skerry_packager.profiles.ENGINES`; empty if not known."""
    flash_bytes: int = 0
    """What the device keeps for models, both slots together."""
    max_slowdown: float = 0.0
    """Largest accepted latency as a multiple of fp32's, where it is known; 0 sets no limit."""
    estimate: Callable[[VariantResult], Estimate | None] = no_estimate
    """Latency of a variant there, as far as anybody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What a variant keeps of fp32 on one split; `drop` is what the gate compares with ``max_drop``."""

    split: str
    """``search`` or ``held-out``."""
    metric: str
    """``accuracy``, ``mae``, ``top1-agreement``, ``cosine`` or ``sqnr``."""
    samples: int
    output: str
    """Name of the output that loses most, which the figures are about."""
    reference: float
    """fp32 in the unit of the metric; 1 for agreement and cosine, 0 (relative noise power) for SQNR."""
    candidate: float
    drop: float
    """Mean loss against fp32: points / 100 for accuracy (without labels: what changed answers lose
    if fp32's probabilities are true), 1 - cosine, noise power over the
    signal's variance (SQNR), growth of the error over the labels' mean absolute deviation (mae). Negative if
    the variant is better."""
    drop_bound: float
    """Upper end of the one-sided 95% interval of `drop`, by paired bootstrap."""
    mean_kl: float | None = None
    """Mean Kullback-Leibler divergence fp32 || variant in nats, for outputs that are probabilities."""
    sqnr_db: float | None = None
    """Signal to quantization noise of that output; None where it is equal bit for bit, or no float."""
    max_abs_error: float = 0.0
    changed: bool = True
    """Whether any output differs from fp32 at all."""
    exact_bound: float | None = None
    """Where the bootstrap bound is degenerate: no row of a classifier disagrees with fp32, so every resample
    gives a drop of 0. Then the exact one-sided 95% bound of the rate of disagreement, which `drop` cannot
    exceed; see `skerry_packager.metrics.exact_bound`. A disagreement is a row that one of the two gets right
    and the other wrong or, without labels, another class. For people: the gate compares `drop_bound`."""

    @property
    def certainty(self) -> str:
        """How sure the drop is, in words."""
        if self.exact_bound is not None:
            return f"{no_disagreement(self.samples, self.exact_bound)}, {self.split}"
        return f"drop at most {self.drop_bound:.4f} (95%, n={self.samples}, {self.split})"


def no_disagreement(rows: int, bound: float) -> str:
    """What is known where nothing was lost.

    >>> no_disagreement(100, 1 - 0.05 ** (1 / 100))
    'no disagreement in 100 rows (exact bound 3.0%)'
    """
    return f"no disagreement in {rows} row{'' if rows == 1 else 's'} (exact bound {bound:.1%})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Measured on this host, one thread, batch of one; interleaved with fp32 in one process."""

    p50_us: float
    p95_us: float
    ratio: float
    """Median over the pairs of variant / fp32."""
    pairs: int
    best_ratio: float = 0.0
    """The fastest run of the variant over the fastest of fp32: other work on the host disturbs it least."""
    provenance: str = "measured on the packing host; not verified on any device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Measured in a fresh process on this host that loads the engine and the model and runs it."""

    peak_rss_bytes: int
    base_rss_bytes: int
    """The same process with the engine imported and no model."""
    load_ms: float
    provenance: str = "measured on the packing host; not verified on any device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Latency of one variant on one target, with an interval; never the host's figure in disguise."""

    p50_us: float
    low_us: float
    high_us: float
    provenance: str
    """``measured``, ``emulated``, ``predicted`` or ``not verified``, and by what: a phrase for people."""

    @property
    def verified(self) -> bool:
        return self.provenance.startswith("measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What quantizing one operator alone costs and saves."""

    node: str
    operator: str
    bytes_saved: int
    noise: float
    """Noise power that it adds to the outputs, over the signal's power; 0 is no noise."""
    kept_float: bool
    """Whether the variant leaves it in floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """One tried variant: accepted or not, always with the reason."""

    name: str
    verdict: Verdict
    reason: str
    model: bytes = b""
    """The model file; empty if `verdict` is SKIPPED."""
    digest: str = ""
    """``sha256:`` digest of `model`."""
    size_bytes: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was made; JSON values only."""
    note: str = ""
    ir: int = 0
    opset: int = 0
    ram_predicted_bytes: int = 0
    """Lower bound from the graph: engine, weights and the peak of live activations. The same on every run."""
    ram_upper_bytes: int = 0
    """Upper bound from the same graph; 0 if none is known."""
    fidelity: Fidelity | None = None
    """On the search split."""
    held_out: Fidelity | None = None
    """On the held-out split; only for variants that were chosen or came near to it."""
    latency: Latency | None = None
    memory: Memory | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """Target -> latency there, where anything is known of it."""
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    """Target -> latency as a multiple of fp32's, where it was measured or follows from measured operators."""
    sensitivity: tuple[Sensitivity, ...] = ()
    """Of a mixed-precision variant: its operators, the most harmful first."""
    operations: tuple[Work, ...] = ()
    """What the engine executes of it, after fusions; empty if it did not tell."""

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one target gets, and why nothing else."""

    target: str
    variants: tuple[str, ...]
    """Best first; the last one is the fp32 fallback where it fits."""
    lost: Mapping[str, str]
    """Variant -> why it was not chosen, for every other one."""
    pareto: tuple[str, ...]
    """Accepted variants that no other accepted one beats in size, RAM, latency and fidelity at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenData:
    """Self-test data in the layout of `skerry_contract.tensors`."""

    inputs: bytes
    """``inputs/NAME`` of shape ``[K, *one model input with its batch axis]``."""
    outputs: Mapping[str, bytes]
    """Variant -> ``outputs/NAME`` of shape ``[K, *output]``."""
    tolerances: Mapping[str, Mapping[str, Tolerance]]
    """Variant -> output -> tolerance."""
    samples: tuple[int, ...]
    """Rows of the evaluation data that were chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """One of the three disjoint splits."""

    rows: int
    sha256: str
    """Over the row numbers and the bytes of every array in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackResult:
    """The outcome of `skerry_packager.pipeline.pack_variants`."""

    inspection: ModelInspection
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: str
    """One of `skerry_contract.manifest.TASKS`: as told, or as found from the outputs and labels."""
    metric: str
    objective: Objective
    max_drop: float
    variants: tuple[VariantResult, ...]
    """All that were tried, fp32 first."""
    choices: tuple[Choice, ...]
    """One per target, in the order given."""
    chosen: tuple[str, ...]
    """Union of the choices' variants, each once, best first: what goes into the bundle."""
    golden: GoldenData
    """For every name in `chosen`."""
    monitoring: bytes
    """The monitoring spec, as `skerry_contract.monitoring.MonitoringSpec.to_bytes` writes it."""
    splits: Mapping[str, SplitInfo]
    """``calibration``, ``search``, ``held-out``."""
    notes: tuple[str, ...] = ()
    """What a person should know: raised opset, repacked external data, few samples."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What was done to the raw data before the model saw it: serving must do the same."""
    class_names: tuple[str, ...] = ()
    """Of labels that were words."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Output -> input that takes it at the next step, of a stateful model; rows are whole sequences then."""

    @property
    def labelled(self) -> bool:
        """Whether labels were found: these are the metrics that need them."""
        return self.metric not in ("top1-agreement", "cosine", "sqnr")

    def variant(self, name: str) -> VariantResult:
        """Raises KeyError if nothing of that name was tried."""
        for result in self.variants:
            if result.name == name:
                return result
        raise KeyError(name)


Progress = Callable[[str, int, int], None]
"""Called as ``progress(what is being done, steps done, steps in all)``."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress callback of those who do not care."""
