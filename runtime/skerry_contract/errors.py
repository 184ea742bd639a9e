"""Every error that crosses a boundary, with a stable code and a sentence on what to do next.

The tree is sorted by who has to act::

    SkerryError                    never raised itself
    ├── BundleError                the engineer: the bundle is not acceptable
    │   ├── BundleFormatError      bundle.format        not a bundle, truncated, extra bytes, bad digest
    │   ├── ManifestError          bundle.manifest      the manifest breaks its schema
    │   ├── SignatureError         bundle.signature     unsigned, wrong key, altered
    │   ├── RollbackError          bundle.rollback      older than the security floor
    │   ├── ExpiredError           bundle.expired       a signed statement is past its date
    │   └── IncompatibleError      bundle.incompatible  no variant runs on this device
    ├── ModelError                 model                the engineer: the model file is not acceptable
    ├── DataError                  data                 the engineer: the data set is not acceptable
    ├── InputError                 input                the caller: a request or an option is wrong
    ├── MessageError               message              the peer: a message breaks the protocol
    ├── TransferError              transfer             the network: a download did not arrive
    ├── SelfTestError              selftest             the model misbehaves on this device
    ├── BudgetError                budget               too large, too slow or too hungry
    │   ├── SizeBudgetError        budget.size
    │   ├── MemoryBudgetError      budget.memory
    │   └── LatencyBudgetError     budget.latency
    ├── EngineError                engine               the inference engine is missing or failed
    ├── SlotError                  slot                 the store or a slot on the device is damaged
    ├── StorageError               storage              the disk is full, read-only or failing
    ├── OverloadedError            overloaded           try again later
    ├── NotFoundError              not_found
    ├── ConflictError              conflict             the state does not allow that now
    ├── AccessError                access               credentials are missing or not sufficient
    ├── ConfigError                config               a configuration file is wrong
    └── UnavailableError           unavailable          a server, broker or port cannot be used

A code is sent in reports and never changes its meaning.
"""

from __future__ import annotations

from typing import ClassVar


class SkerryError(Exception):
    """Base of all errors of this project: ``str(error)`` says what was wrong, ``hint`` what to do."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        if type(self) is SkerryError:
            raise TypeError("SkerryError is a base class: raise one of its children")
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[SkerryError], message: str, hint: str) -> SkerryError:
    return kind(message, hint=hint)


class BundleError(SkerryError):
    code = "bundle"


class BundleFormatError(BundleError):
    code = "bundle.format"


class ManifestError(BundleError):
    code = "bundle.manifest"


class SignatureError(BundleError):
    code = "bundle.signature"


class RollbackError(BundleError):
    code = "bundle.rollback"


class ExpiredError(BundleError):
    code = "bundle.expired"


class IncompatibleError(BundleError):
    code = "bundle.incompatible"


class ModelError(SkerryError):
    code = "model"


class DataError(SkerryError):
    code = "data"


class InputError(SkerryError):
    code = "input"


class MessageError(SkerryError):
    code = "message"


class TransferError(SkerryError):
    code = "transfer"


class SelfTestError(SkerryError):
    code = "selftest"


class BudgetError(SkerryError):
    code = "budget"


class SizeBudgetError(BudgetError):
    code = "budget.size"


class MemoryBudgetError(BudgetError):
    code = "budget.memory"


class LatencyBudgetError(BudgetError):
    code = "budget.latency"


class EngineError(SkerryError):
    code = "engine"


class SlotError(SkerryError):
    code = "slot"


class StorageError(SkerryError):
    code = "storage"


class OverloadedError(SkerryError):
    code = "overloaded"


class NotFoundError(SkerryError):
    code = "not_found"


class ConflictError(SkerryError):
    code = "conflict"


class AccessError(SkerryError):
    code = "access"


class ConfigError(SkerryError):
    code = "config"


class UnavailableError(SkerryError):
    code = "unavailable"


def _tree(kind: type[SkerryError]) -> dict[str, type[SkerryError]]:
    found = {child.code: child for child in kind.__subclasses__()}
    for child in kind.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[SkerryError]] = _tree(SkerryError)


def from_code(code: str, message: str, hint: str = "") -> SkerryError:
    """Rebuild an error that another process or the fleet reported by its code.

    A code that this version does not know becomes its nearest known parent, or `UnavailableError`: a newer
    peer never crashes an older one.
    """
    while code:
        if code in BY_CODE:
            return BY_CODE[code](message, hint=hint)
        code = code.rpartition(".")[0]
    return UnavailableError(message, hint=hint)
