"""DDP with one process per device, in which every rank runs with the resolved config of the first rank.

Lightning starts the other ranks by repeating the command line. Under Hydra, each rank then repeats the whole sweep and
evaluates the resolvers again, so ranks can silently train with different hyperparameters. Here, each rank is started with
the `config.yaml` that the first rank wrote, without Hydra.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ret_lightning.distributed.rank_process import PARENT_VARIABLE, rank_command

# Seconds within which the first rank should detect by itself that another rank has ended.
GRACE_SECONDS = 10.0

# Environment variables that a rank reads to join the process group.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class SameConfigDDP(DDPStrategy):
    """Lightning's DDP strategy, with ranks that are started from a config file.

    Under a launcher that creates the processes itself, such as SLURM, it behaves as `DDPStrategy`.

    Args:
        config_file: Path of the resolved config of the run.
        kwargs: Keyword arguments of `lightning.pytorch.strategies.DDPStrategy`. By default, gradients are views of the
            communication buckets, and buffers are broadcast at the start only, unless a batch norm updates them in training.
    """

    def __init__(self, config_file: str, **kwargs: Any) -> None:
        super().__init__(**{"gradient_as_bucket_view": True, **kwargs})
        self.config_file = config_file
        self._function: Callable[..., Any] | None = None
        self._options: tuple[str, ...] = ()

    def set_rank_function(self, function: Callable[..., Any], **options: bool) -> None:
        """Set the function that the other ranks run.

        Args:
            function: Function of a config and keyword arguments; importable by its module and name.
            options: Boolean keyword arguments of the function. Those that are true are passed on.
        """
        self._function = function
        self._options = tuple(name for name, value in options.items() if value)

    def rank_command(self) -> list[str]:
        """Return the command line that starts another rank.

        Raises:
            RuntimeError: If `set_rank_function` was not called.
        """
        if self._function is None:
            raise RuntimeError("SameConfigDDP: call set_rank_function(function) before the trainer starts")
        return rank_command(self._function, self.config_file, self._options)

    @property
    def prog(self) -> str:
        """The name of the command, for messages."""
        return "ret-lightning" if self._function is None else f"ret-{self._function.__name__}"

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the validation step of the module itself, not of its DDP wrapper.

        DDP may broadcast buffers in a forward pass, which deadlocks if ranks have different numbers of batches.
        """
        with self.precision_plugin.val_step_context():
            assert self.lightning_module is not None
            return self.lightning_module.validation_step(*args, **kwargs)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        # The buffers of retrievers are constants. DDP broadcasts them in every forward pass by default.
        self._ddp_kwargs.setdefault("broadcast_buffers", _has_running_statistics(model))
        return super()._setup_model(model)

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes, strategy=self)

    def other_rank_failed(self) -> bool:
        """Return whether a rank that this process started has failed; the first rank then fails in a collective."""
        return isinstance(self._launcher, _Launcher) and self._launcher.other_rank_failed(GRACE_SECONDS)

    def stop_ranks(self, failed: bool) -> None:
        """Stop the processes that this process started, so that the next job of a sweep can start its own.

        Args:
            failed: Whether this rank failed. If so the other ranks, which wait for it in a collective, are killed;
                otherwise this method waits for them to exit.
        """
        if isinstance(self._launcher, _Launcher):
            self._launcher.end(failed)


def _has_running_statistics(model: nn.Module) -> bool:
    # The base class of all batch norms and instance norms.
    return any(isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats for m in model.modules())


class _Launcher(_SubprocessScriptLauncher):
    def __init__(self, *args: Any, strategy: SameConfigDDP) -> None:
        super().__init__(*args)
        self.strategy = strategy

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            # Not Lightning's watcher, which kills this process, and thereby the whole sweep, when a rank fails.
            threading.Thread(target=self._watch, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _call_children_scripts(self) -> None:
        self._check_can_spawn_children()
        self.procs = []
        environment = self.cluster_environment
        values = (
            environment.local_rank(),
            environment.node_rank(),
            self.num_processes * self.num_nodes,
            environment.main_address,
            environment.main_port,
        )
        os.environ.update({name: str(value) for name, value in zip(RANK_VARIABLES, values, strict=True)})
        for local_rank in range(1, self.num_processes):
            own = {"LOCAL_RANK": str(local_rank), PARENT_VARIABLE: str(os.getpid())}
            self.procs.append(subprocess.Popen(self.strategy.rank_command(), env={**os.environ, **own}))

    def _watch(self) -> None:
        """Exit this process if it keeps waiting for a rank that has failed."""
        started = self.procs
        while started and not any(process.poll() for process in started):
            time.sleep(1)
        time.sleep(2 * GRACE_SECONDS)
        if started:  # `end` empties the list
            print(
                f"{self.strategy.prog}: another rank failed, see its error above; stopping",
                file=sys.stderr,
                flush=True,
            )
            for process in started:
                process.kill()
            os._exit(1)

    def other_rank_failed(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.procs and time.monotonic() < until:
            if any(process.poll() for process in self.procs):
                return True
            time.sleep(0.1)
        return False

    def end(self, failed: bool) -> None:
        if not self.procs:
            return
        for process in self.procs:
            if failed:
                process.kill()
            process.wait()
        self.procs.clear()
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
