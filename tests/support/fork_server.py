"""Commands in processes of their own that start within a second: forks of a server that has imported the libraries.

Importing torch, lightning and transformers takes most of the time of a short command, 10 s and more on a slow machine. A server
does it once per pytest worker. For each command it forks a child, which leads its own session, has the environment, working
folder, arguments and output of the request, and runs the module as `python -m` does. The package itself is imported by the
child, so that what it imports, and when, stays its own.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "torch", "lightning", "transformers", "transformers.models.clip.modeling_clip", "open_clip", "datasets", "faiss",
    "torchmetrics", "wandb", "matplotlib.figure", "matplotlib.backends.backend_agg", "pandas", "scipy.stats", "hydra",
)  # fmt: skip
# Variables that libraries read when they are imported: a command that has others needs a process that imports anew.
_READ_AT_IMPORT = ("HF_", "KMP_", "LD_", "MPL", "OMP_", "TORCH", "TRANSFORMERS_", "WANDB_", "XDG_")
SERVICE = "WANDB_SERVICE"  # set by W&B for the children of a process that uses it, and of no use to others
_PREFIX = "ret_lightning.commands."


def can_run(command: Sequence[str | Path], env: Mapping[str, str]) -> bool:
    """Whether a command may run as a fork: one of the package's, with the environment that libraries were imported in."""
    if not sys.platform.startswith("linux") or [*map(str, command[:2])] != [sys.executable, "-m"]:
        return False
    return str(command[2]).startswith(_PREFIX) and _at_import(env) == _at_import(os.environ)


def _at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_IMPORT) and name != SERVICE}


class Preloaded:
    """The server, as its client sees it; it ends with this process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._replies = self._socket.makefile("r")

    def start(self, command: Sequence[str | Path], cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> int:
        """Start a command of the package and return its process id, which is that of its process group, too."""
        request = {"command": [*map(str, command[2:])], "cwd": str(cwd), "env": dict(env)}
        message = json.dumps(request).encode()
        socket.send_fds(self._socket, [len(message).to_bytes(8, "big")], [stdout, stderr])
        self._socket.sendall(message)
        return int(self._replies.readline())

    def wait(self, patience: float) -> int | None:
        """Wait for the command's end, so many seconds at most.

        Returns:
            Its exit code, or the negative number of the signal that ended it; None if it has not ended.
        """
        if not select.select([self._socket], [], [], patience)[0]:
            return None
        return int(self._replies.readline())


def _serve(connection: socket.socket) -> list[str]:
    """Fork a child for each request; return only in the child, with its arguments."""
    for name in LIBRARIES:
        importlib.import_module(name)
    folders = [made for made in gc.get_objects() if isinstance(made, tempfile.TemporaryDirectory)]  # of wandb, for one
    gc.freeze()  # so that the children's collections neither visit the libraries' objects nor copy their pages
    while True:
        head, streams, _, _ = socket.recv_fds(connection, 8, 2)
        if not head:
            for folder in folders:
                folder.cleanup()
            os._exit(0)  # without the complaints of libraries that are taken down
        request = json.loads(_exactly(connection, int.from_bytes(head, "big")))
        child = os.fork()
        if child == 0:
            connection.close()
            os.setsid()
            for folder in folders:  # one of the child's own, since each removes them when it ends
                folder._finalizer.detach()
                folder.name = tempfile.mkdtemp()
                atexit.register(folder.cleanup)
            for stream, number in zip(streams, (1, 2), strict=True):
                os.dup2(stream, number)
                os.close(stream)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            added = request["env"].get("PYTHONPATH", "").split(os.pathsep)
            sys.path[:1] = [request["cwd"], *(place for place in added if place and place not in sys.path)]
            atexit.register(gc.unfreeze)  # some libraries report what is never collected as leaked
            faulthandler.enable()
            return request["command"]
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{code}\n".encode())


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += connection.recv(size - len(received))
    return received


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, *arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
