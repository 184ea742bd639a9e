"""Functions that the engineer names as ``module:function``: a source of data, or a metric."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry_contract.errors import InputError

_HINT = "Name it as module:function; the module is looked for in the working folder first."


def is_function_name(text: str) -> bool:
    """Whether the text has the form ``package.module:function``."""
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_function(text: str) -> Callable[..., Any]:
    """Import it, the working folder first.

    Raises:
        InputError: not of that form, no such module or function, or the module fails while it is imported.
    """
    if not is_function_name(text):
        raise InputError(f"{text!r} names no function", hint=_HINT)
    module, _, function = text.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # the boundary to code that is not ours
        raise InputError(f"{text} cannot be imported: {type(error).__name__}: {error}", hint=_HINT) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(found):
        raise InputError(f"{module} has no function {function!r}", hint=_HINT)
    return found  # type: ignore[no-any-return]
