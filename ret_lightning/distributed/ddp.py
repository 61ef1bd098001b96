"""DDP with one process a device, whose other processes run what this one runs: the resolved config of this very job.

Lightning starts the other ranks by repeating the command line. Under Hydra that repeats a whole sweep in each of them, and
evaluates resolvers a second time, so that ranks can train with different hyperparameters without anybody noticing. Here a
rank is started with the `config.yaml` that the first rank wrote, and Hydra takes no part in it.
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

from ret_lightning.distributed.rank_process import PARENT_VARIABLE, rank_command

# How long the first rank may take to notice by itself that another one is gone, seconds.
GRACE = 10.0

# What the launcher tells a rank about itself and where the others are.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class SameConfigDDP(DDPStrategy):
    """Lightning's DDP, with ranks that are started from a config file. Under SLURM, which starts them, it is Lightning's.

    Args:
        config_file: the resolved config of the run.
        kwargs: of `lightning.pytorch.strategies.DDPStrategy`.
    """

    def __init__(self, config_file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config_file = config_file
        self._function: Callable[..., Any] | None = None
        self._options: tuple[str, ...] = ()

    def ranks_run(self, function: Callable[..., Any], **options: bool) -> None:
        """Sets what the other ranks run: this function, with the config of `config_file` and the options that are true."""
        self._function = function
        self._options = tuple(name for name, value in options.items() if value)

    def rank_command(self) -> list[str]:
        """The command line that starts another rank.

        Raises:
            RuntimeError: before `ranks_run`.
        """
        if self._function is None:
            raise RuntimeError(
                "SameConfigDDP: call ranks_run(function) before the trainer starts, to say what the ranks run"
            )
        return rank_command(self._function, self.config_file, self._options)

    @property
    def prog(self) -> str:
        """The command's name, for messages."""
        return "ret-lightning" if self._function is None else f"ret-{self._function.__name__}"

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, not through DDP, which would have ranks exchange buffers in each batch of a validation, of which
        they may have different numbers."""
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes, strategy=self)

    def another_failed(self) -> bool:
        """Whether a rank that was started here ended with an error; the first rank then fails in a collective."""
        return isinstance(self._launcher, _Launcher) and self._launcher.another_failed(GRACE)

    def end_ranks(self, failed: bool) -> None:
        """Ends the processes that were started here and forgets them, so that the next job of a sweep starts its own.

        Args:
            failed: this rank gave up, so the others wait for it in vain: they are killed. Otherwise they are waited for.
        """
        if isinstance(self._launcher, _Launcher):
            self._launcher.end(failed)


class _Launcher(_SubprocessScriptLauncher):
    def __init__(self, *args: Any, strategy: SameConfigDDP) -> None:
        super().__init__(*args)
        self.strategy = strategy

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            # Lightning's own watcher kills this process, and with it a whole sweep, the moment a rank ends in an error.
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
        """Ends this process where it waits for a rank that is gone and does not notice."""
        started = self.procs
        while started and not any(process.poll() for process in started):
            time.sleep(1)
        time.sleep(2 * GRACE)
        if started:  # `end` empties the list
            print(
                f"{self.strategy.prog}: another rank ended with an error, see above; giving up",
                file=sys.stderr,
                flush=True,
            )
            for process in started:
                process.kill()
            os._exit(1)

    def another_failed(self, seconds: float) -> bool:
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
