"""Importing the package has no side effects on the process, except for `sys.modules`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# One process imports the package and lists the libraries that it loads. A second process imports these libraries, then
# the package, and compares its state before and after.
MODULES = """
import importlib, json, os, pathlib, sys
def package():
    root = pathlib.Path("ret_lightning")
    return sorted(".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in root.rglob("*.py"))
"""
LIBRARIES = (
    MODULES
    + """
for name in package():
    importlib.import_module(name)
print(json.dumps([name for name in sys.modules if not name.startswith(("ret_lightning", "__"))]))
"""
)
EFFECTS = (
    MODULES
    + """
import atexit, gc, locale, logging, multiprocessing, random, signal, threading, warnings
for name in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    try:
        importlib.import_module(name)
    except Exception:
        pass
import numpy, torch

hooks = []
os.register_at_fork = lambda **functions: hooks.append(functions)

def state():
    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    return {
        "warning filters": repr(warnings.filters),
        "logging": {
            name: (logger.level, repr(logger.handlers), logger.propagate)
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and not name.startswith("ret_lightning")
        },
        "logging.raiseExceptions": logging.raiseExceptions,
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "environment": dict(os.environ),
        "fork hooks": list(hooks),
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "torch dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "random": repr(random.getstate()) + repr(numpy.random.get_state()) + str(torch.get_rng_state().tolist()),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "excepthook": repr(sys.excepthook),
        "garbage collection": (gc.isenabled(), gc.get_freeze_count()),
        "working folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "exit functions": atexit._ncallbacks(),
        "recursion limit": sys.getrecursionlimit(),
    }

before = state()
for name in package():
    importlib.import_module(name)
after = state()
print(json.dumps({key: [str(before[key])[:300], str(after[key])[:300]] for key in before if before[key] != after[key]}))
"""
)


def run(program: str, *arguments: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_import_has_no_side_effects(tmp_path: Path) -> None:
    libraries = tmp_path / "libraries.json"
    libraries.write_text(json.dumps(run(LIBRARIES)))
    assert run(EFFECTS, str(libraries)) == {}
