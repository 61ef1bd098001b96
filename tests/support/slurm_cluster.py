"""A SLURM cluster of one node on this machine, with its own munged, slurmctld and slurmd in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "sinfo")


def missing() -> str:
    """Return why a cluster cannot be started; empty if it can."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"SLURM is not installed (no {', '.join(absent)})"
    return "" if os.geteuid() == 0 else "slurmd requires root"


class Cluster:
    """A cluster. The constructor starts the daemons; `stop` ends them and all jobs.

    Args:
        folder: folder of configuration, state and logs. Its path must be short because it contains a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # munged requires access to its socket
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge").mkdir(mode=0o755)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, node = _free_ports()
        # config_overrides: use the resources of this file; pgid and none: do not use control groups.
        (folder / "slurm.conf").write_text(
            f"""ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            munge = [f"--{name}-file={folder}/munge/{name}" for name in ("log", "pid", "seed")]
            self._start("munged", "--foreground", f"--socket={folder}/munge/socket", f"--key-file={key}", *munge)
            wait_until((folder / "munge" / "socket").exists, "munged did not start")
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"), "no node came up", self.logs)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a SLURM command, and return its output."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, cwd=cwd)
        return done.stdout + done.stderr

    def submit(self, script: str, cwd: Path, *options: str) -> str:
        """Submit a script as a job, and return the job id."""
        file = cwd / "job.sh"
        file.write_text(script)
        output = self.run("sbatch", "--parsable", *options, str(file), cwd=cwd)
        assert output.strip().isdigit(), output
        return output.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, such as PENDING, RUNNING or COMPLETED."""
        output = self.run("scontrol", "show", "job", job)
        return output.partition("JobState=")[2].partition(" ")[0]

    def restarts(self, job: str) -> int:
        """Return how often a job was requeued."""
        return int(self.run("scontrol", "show", "job", job).partition("Restarts=")[2].split()[0])

    def logs(self) -> str:
        """Return the last lines of the logs of the daemons."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.run("scancel", "--full", "--state=RUNNING", "--state=PENDING")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.out", "wb") as out:
            self._daemons.append(
                subprocess.Popen([_program(name), *arguments], env=self.env, stdout=out, stderr=subprocess.STDOUT)
            )


def wait_until(
    condition: Callable[[], bool], message: str, details: Callable[[], str] = str, seconds: float = 300
) -> None:
    """Wait for a condition; fail with a message after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{message}\n{details()}"
        time.sleep(0.3)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
