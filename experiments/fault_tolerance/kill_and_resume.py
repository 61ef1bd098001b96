"""Kills a run at random moments, resumes it until it is done, and compares its weights with those of an undisturbed run.

    python experiments/fault_tolerance/kill_and_resume.py kills=20 seed=0
    python experiments/fault_tolerance/kill_and_resume.py kills=20 seed=1 trainer=ddp_cpu data.num_workers=1

Options of its own: kills, seed (of the moments), folder (a new one by default). All others go to ret-train. Each run trains the
small model on the glyphs corpus for 240 steps with dropout, writes a checkpoint after every step (so that many kills fall into
the writing of one) and is killed with SIGKILL, all its processes at once: one time in five while it starts, else within the
three seconds that follow its first step. Exit code 1 where the weights differ.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TRAIN = [
    sys.executable, "-m", "ret_lightning.commands.train", "model.dropout=0.1", "model.attention_dropout=0.1",
    "data.subsets=[name,case]", "data.batch_size=16", "trainer.max_epochs=4", "trainer.limit_train_batches=60",
    "trainer.limit_val_batches=2", "test_with=none", "logger=csv", "callbacks.last.every_n_steps=1", "~callbacks.examples",
]  # fmt: skip
OWN = ("kills", "seed", "folder")
AFTER_A_STEP = 3.0  # seconds
STARTING = 8.0


def main() -> int:
    arguments = [argument.split("=", 1) for argument in sys.argv[1:]]
    own = {"kills": "20", "seed": "0", "folder": "", **{k: v for k, v in arguments if k in OWN}}
    options = [f"{k}={v}" for k, v in arguments if k not in OWN]
    folder = Path(own["folder"] or tempfile.mkdtemp(prefix="surviving-"))
    moments = random.Random(int(own["seed"]))
    os.environ.setdefault("WANDB_MODE", "offline")

    began = time.perf_counter()
    if Run(folder / "undisturbed", options, resume=False).wait():
        raise SystemExit("the undisturbed run failed, see its log")
    print(f"undisturbed: {time.perf_counter() - began:.0f} s", flush=True)
    disturbed = folder / "disturbed"
    killed = 0
    while killed < int(own["kills"]):
        run = Run(disturbed, options, resume=(disturbed / "config.yaml").exists())
        starting = moments.random() < 0.2
        seconds = moments.uniform(0, STARTING if starting else AFTER_A_STEP)
        if not run.kill(seconds, after_a_step=not starting):
            print("it came to its end before the next kill", flush=True)
            break
        killed += 1
        torn = [f.name for f in (disturbed / "checkpoints").glob(".*")]
        print(
            f"kill {killed:2d}, {seconds:.2f} s after {'its start' if starting else 'a step'}: last.ckpt at step "
            f"{step(disturbed)}{', torn: ' + ' '.join(torn) if torn else ''}",
            flush=True,
        )
    if Run(disturbed, options, resume=True).wait():
        raise SystemExit("the resumed run failed, see its log")
    ours, theirs = (weights(folder / name) for name in ("disturbed", "undisturbed"))
    same = all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()) and ours.keys() == theirs.keys()
    print(f"{killed} kills, {step(disturbed)} steps: the weights are {'equal bit for bit' if same else 'DIFFERENT'}")
    return 0 if same else 1


class Run:
    """A run in a process group of its own; what it prints goes to a log beside its folder."""

    def __init__(self, folder: Path, options: list[str], resume: bool) -> None:
        self.folder = folder
        where = [f"resume={folder}"] if resume else [*TRAIN[3:], *options, f"output_dir={folder}"]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(
                [*TRAIN[:3], *where], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> int:
        return self.process.wait()

    def kill(self, seconds: float, after_a_step: bool) -> bool:
        """Kills it so many seconds after its start or its first checkpoint; False where it ended before."""
        before = self._written()
        while after_a_step and self.process.poll() is None and self._written() == before:
            time.sleep(0.05)
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return True

    def _written(self) -> float:
        file = self.folder / "checkpoints" / "last.ckpt"
        return file.stat().st_mtime if file.exists() else 0.0


def step(folder: Path) -> int:
    file = folder / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True, mmap=True)["global_step"] if file.exists() else 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


if __name__ == "__main__":
    sys.exit(main())
