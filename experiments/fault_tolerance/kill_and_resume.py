"""Kill a run at random times, resume it until it is finished, and compare its weights with those of an uninterrupted run.

    python experiments/fault_tolerance/kill_and_resume.py kills=20 seed=0
    python experiments/fault_tolerance/kill_and_resume.py kills=20 seed=1 trainer=ddp_cpu data.num_workers=1

Options: kills, seed (of the times), folder (default: a new temporary one). All other options are passed to ret-train. Each run
trains the small model on the glyphs dataset for 240 steps with dropout, and writes a checkpoint after every step, so that many
kills interrupt the writing of a checkpoint. All processes of the run are killed with SIGKILL: with probability 0.2 during the
start, else within three seconds after its first step. The exit code is 1 if the weights differ.
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
    folder = Path(own["folder"] or tempfile.mkdtemp(prefix="kill-and-resume-"))
    moments = random.Random(int(own["seed"]))
    os.environ.setdefault("WANDB_MODE", "offline")

    start = time.perf_counter()
    if Run(folder / "uninterrupted", options, resume=False).wait():
        raise SystemExit(f"the uninterrupted run failed; see {folder}/uninterrupted.log")
    print(f"uninterrupted: {time.perf_counter() - start:.0f} s", flush=True)
    interrupted = folder / "interrupted"
    killed = 0
    while killed < int(own["kills"]):
        run = Run(interrupted, options, resume=(interrupted / "config.yaml").exists())
        starting = moments.random() < 0.2
        seconds = moments.uniform(0, STARTING if starting else AFTER_A_STEP)
        if not run.kill(seconds, after_a_step=not starting):
            print("the run finished before the next kill", flush=True)
            break
        killed += 1
        partial = [f.name for f in (interrupted / "checkpoints").glob(".*")]
        print(
            f"kill {killed:2d}, {seconds:.2f} s after {'its start' if starting else 'a step'}: last.ckpt at step "
            f"{checkpoint_step(interrupted)}{', partially written: ' + ' '.join(partial) if partial else ''}",
            flush=True,
        )
    if Run(interrupted, options, resume=True).wait():
        raise SystemExit(f"the resumed run failed; see {folder}/interrupted.log")
    ours, theirs = (load_weights(folder / name) for name in ("interrupted", "uninterrupted"))
    same = all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()) and ours.keys() == theirs.keys()
    print(
        f"{killed} kills, {checkpoint_step(interrupted)} steps: the weights are {'bitwise equal' if same else 'DIFFERENT'}"
    )
    return 0 if same else 1


class Run:
    """A run in its own process group; its output is written to a log next to its folder."""

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
        """Kill the run some seconds after its start or first checkpoint; return False if it ended before."""
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


def checkpoint_step(folder: Path) -> int:
    file = folder / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True, mmap=True)["global_step"] if file.exists() else 0


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


if __name__ == "__main__":
    sys.exit(main())
