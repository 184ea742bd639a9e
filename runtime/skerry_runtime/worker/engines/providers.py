"""Where a session runs: which execution providers and how many threads, of those that are wanted. Pure.

What is wanted and not there costs speed, never the answer: the processor itself can always do it, and the
sentence says what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from skerry_contract.manifest import Execution

CPU: Final = "cpu"
PROVIDERS: Final[Mapping[str, str]] = {
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Name in the manifest -> ONNX Runtime's. Those that send data away (Azure) are not here on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask the engine for."""

    providers: tuple[str, ...]
    """As the engine calls them, first choice first; the processor is always the last."""
    threads: int
    missing: tuple[str, ...]
    """What was wanted and cannot be, each in words."""

    def told(self, running: Collection[str]) -> str:
        """One sentence on what runs, given the providers that the session really has.

        >>> plan_for(Execution(providers=("cuda",), threads=2), ["CPUExecutionProvider"], cores=4).told([])
        'cpu, 2 threads; cuda is not in this build of the engine'
        """
        names = {engine: name for name, engine in PROVIDERS.items()}
        used = [names[provider] for provider in self.providers if provider in running]
        silent = [
            f"{names[provider]} did not start on this device"
            for provider in self.providers[:-1]
            if provider not in running
        ]
        what = " and ".join(used or [CPU])
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return "; ".join((f"{what}, {threads}", *self.missing, *silent))


def plan_for(execution: Execution, available: Collection[str], cores: int) -> Plan:
    """Choose.

    Args:
        execution: what the manifest wants.
        available: the engine's own names of the providers that are built in.
        cores: how many this process may use.
    """
    providers, missing = [], []
    for name in execution.providers:
        provider = PROVIDERS.get(name)
        if provider is None:
            missing.append(f"{name} is not known to this version of the runtime")
        elif provider not in available:
            missing.append(f"{name} is not in this build of the engine")
        elif name != CPU:
            providers.append(provider)
    wanted = max(1, execution.threads)
    if wanted > cores:
        missing.append(f"{wanted} threads were wanted, and there are {cores} cores")
    return Plan(
        providers=(*dict.fromkeys(providers), PROVIDERS[CPU]),
        threads=min(wanted, max(1, cores)),
        missing=tuple(missing),
    )
