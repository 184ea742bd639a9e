"""A loaded model: generation and session, proved to agree on their tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerry_contract.errors import SelfTestError
from skerry_contract.manifest import TensorSpec

from .engines import Array, Engine, Session, Signature, import_engine
from .generation import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Ready to run."""

    generation: Generation
    engine: Engine
    session: Session
    proof: Session
    """Runs the golden samples: a session apart where the model keeps a state, for that is the traffic's."""
    load_ms: float

    def run(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """One inference: outputs, and its own time in microseconds. Raises as `Session.run`."""
        return _timed(self.session, inputs)

    def run_golden(self, index: int) -> float:
        """Run a golden sample from a fresh state and compare; its time in microseconds.

        Raises:
            SelfTestError: the answer is not the recorded one.
            EngineError, MemoryBudgetError: there was no answer.
        """
        self.proof.reset()
        outputs, microseconds = _timed(self.proof, self.generation.golden.samples[index].inputs)
        self.generation.golden.check(index, outputs)
        return microseconds


def load_model(generation: Generation) -> LoadedModel:
    """Hash, load and check the model of a generation.

    Raises:
        SlotError: the bytes are damaged.
        EngineError, MemoryBudgetError: the engine is missing or refuses the model.
        SelfTestError: the model's tensors are not those of the manifest.
    """
    engine = import_engine(generation.variant.engine)
    begin = time.perf_counter_ns()
    model, execution = generation.open_model(), generation.variant.execution
    session = engine.load(model, execution)
    load_ms = (time.perf_counter_ns() - begin) / 1e6
    check_signature("input", generation.manifest.inputs, session.inputs)
    check_signature("output", generation.manifest.outputs, session.outputs)
    # Both sessions map the same file: the second one costs its activations.
    proof = engine.load(model, execution) if session.stateful else session
    return LoadedModel(generation=generation, engine=engine, session=session, proof=proof, load_ms=load_ms)


def _timed(session: Session, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    begin = time.perf_counter_ns()
    outputs = session.run(inputs)
    return outputs, (time.perf_counter_ns() - begin) / 1000


def check_signature(what: str, specs: Sequence[TensorSpec], found: Sequence[Signature]) -> None:
    """The manifest may fix a size that the model leaves free, never the other way round (attack M12).

    Args:
        what: ``input`` or ``output``, for the message.

    Raises:
        SelfTestError: names, datatypes or shapes differ.
    """
    named = {signature.name: signature for signature in found}
    if set(named) != {spec.name for spec in specs}:
        raise SelfTestError(
            f"the model's {what}s are {sorted(named)}, the manifest's {sorted(spec.name for spec in specs)}",
            hint="Pack the model again.",
        )
    for spec in specs:
        signature = named[spec.name]
        same = spec.datatype == signature.datatype and len(spec.shape) == len(signature.shape)
        if not same or any(
            own not in (-1, said) for own, said in zip(signature.shape, spec.shape, strict=True)
        ):
            raise SelfTestError(
                f"the model's {what} {spec.name!r} is {signature.datatype} {list(signature.shape)}, "
                f"the manifest's {spec.datatype} {list(spec.shape)}",
                hint="Pack the model again.",
            )
