"""The daemon with other constants, so that a test of its patience takes seconds.

``python impatient_daemon.py worker.SILENT_SECONDS=4 ... -- ARGUMENTS``: set constants of the agent's
modules, then do what ``skerry-runtime ARGUMENTS`` does.
"""

from __future__ import annotations

import importlib
import sys

from skerry_runtime import cli


def main(words: list[str]) -> int:
    """Set, then run."""
    end = words.index("--")
    for setting in words[:end]:
        name, _, value = setting.partition("=")
        module_name, _, constant = name.rpartition(".")
        module = importlib.import_module(f"skerry_runtime.agent.{module_name}")
        # Only what is there: a constant with another name would make the test wait for nothing.
        setattr(module, constant, type(getattr(module, constant))(float(value)))
    return cli.main(words[end + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
