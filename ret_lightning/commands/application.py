"""A command as a Hydra application that checks its config first, and reports a user's error in one line."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ret_lightning.commands.command_line import read_arguments
from ret_lightning.commands.help_page import help_page
from ret_lightning.commands.termination import sigterm_raises
from ret_lightning.config import resolvers
from ret_lightning.config.checker.config_changes import Base, check_changes
from ret_lightning.config.checker.config_check import Verdict, check
from ret_lightning.config.config_errors import report
from ret_lightning.config.home_folder import expand_config
from ret_lightning.config.initialization import VERSION_BASE, initialized
from ret_lightning.config.sweeping import Choose, all_jobs, is_grid, results_of
from ret_lightning.config.targets.allowed_targets import hydra_allow_list
from ret_lightning.config.targets.renamed_keys import current_override, deprecation, is_earlier, update_keys
from ret_lightning.errors import ConfigError, Stopped, UserError, one_line
from ret_lightning.runtime.cache_errors import cache_error
from ret_lightning.runtime.child_process import use_default_start_method
from ret_lightning.runtime.console import abandon_stdout, quiet_libraries

resolvers.register_resolvers()  # here: a launcher's worker imports only this module before it composes a config


@dataclass(frozen=True)
class Failure:
    """What a failed job gives back in place of raising, so that the other jobs of a sweep run."""

    line: str
    exit_code: int = 1


def run(
    task: Callable[[DictConfig], Any],
    *,
    config_name: str,
    schema: type,
    prog: str,
    config_path: str = "pkg://ret_lightning.conf",
    verbatim: Collection[str] = (),
    choose: Choose = all_jobs,
    base: Callable[[Sequence[str]], Base | None] = lambda overrides: None,
    ready: Callable[[DictConfig], None] = lambda config: None,
) -> None:
    """Run a command: read the command line as Hydra does, check the config, then run the task, once or for every job.

    With a problem in the config nothing is run and every problem is printed. `--help`, `--info` and their like are
    Hydra's own. In a sweep a job that fails does not stop the others; the failures are listed at the end.

    Args:
        task: what a job does; its return value goes to Hydra's sweeper.
        config_name: the primary config, unless `--config-name` names another.
        schema: the dataclass of the top level's keys, see `ret_lightning.config.checker.config_check`.
        prog: the command's name, which begins every message.
        config_path: where the configs are, in Hydra's way of writing it.
        verbatim: keys whose values are taken as they stand on the command line, as texts and file names want it: a comma is
            no sweep, a quote or bracket opens nothing, and a number is text. `null` alone is null.
        choose: which jobs of a sweep need to run, see `ret_lightning.config.sweeping`.
        base: of the command line's overrides, the stored config that they apply to, if they name one; the task then gets
            that config, with the overrides applied.
        ready: called with the config of a single run before anything is written; raises what refuses the run.

    Raises:
        SystemExit: 2 for a problem in the config or on the command line, 1 for a failure, 130 for an interrupt. With
            HYDRA_FULL_ERROR=1 a failure is raised as it is, for its traceback.
    """
    # Tells of a cache of its own when an interrupted process ends.
    logging.getLogger("torch._subclasses").setLevel(logging.WARNING)
    try:
        arguments = read_arguments(verbatim)
        application = _Application(task, config_name, schema, prog, config_path, arguments, choose, base, ready)
        with quiet_libraries(), sigterm_raises():
            code = application.answer()
    except BrokenPipeError:  # `ret-train --help | head`: the reader has seen enough
        abandon_stdout()
        code = 0
    except (KeyboardInterrupt, _SweepStopped, UserError, HydraException) as error:
        if _shows_traceback():
            raise
        print(f"{prog}: {'interrupted' if isinstance(error, KeyboardInterrupt) else _line(error)}", file=sys.stderr)
        code = _exit_code(error)
    if code:
        sys.exit(code)


@dataclass(frozen=True)
class _Application:
    task: Callable[[DictConfig], Any]
    config_name: str
    schema: type
    prog: str
    config_path: str
    arguments: Namespace
    choose: Choose
    base: Callable[[Sequence[str]], Base | None]
    ready: Callable[[DictConfig], None]

    def answer(self) -> int:
        """Do what the command line asks for, and give the exit code."""
        arguments = self.arguments
        if arguments.help:
            return self._help()
        if arguments.hydra_help or arguments.info or arguments.shell_completion:
            try:
                self._leave_to_hydra()
            except Exception:  # it may well be the config that Hydra stumbles over
                if _shows_traceback() or not self._check(complete=False).problems:
                    raise
                return 2
            return 0
        base = self.base(arguments.overrides)
        self._rename_overrides(base)
        verdict = self._check(complete=not arguments.cfg, base=base)
        if verdict.problems:
            return 2
        if arguments.cfg == "job" and base is not None:
            print(OmegaConf.to_yaml(verdict.config, resolve=arguments.resolve), end="")
            return 0
        if arguments.cfg:
            self._leave_to_hydra()
            return 0
        multirun = verdict.multirun or verdict.dry_run  # a dry run is one of a sweep, perhaps of one job
        expand_config(verdict.config)
        for line in update_keys(verdict.config):
            print(f"{self.prog}: {line}", file=sys.stderr)
        if not multirun:
            self.ready(verdict.config)
        return self._run(multirun, base, verdict.config)

    def _help(self) -> int:
        """Print the help, `--help` or `--help all`; it shows the options of groups that the command line chooses."""
        overrides = [override for override in self.arguments.overrides if override != "all"]
        every_key = len(overrides) < len(self.arguments.overrides)
        self.arguments.overrides = overrides
        config_name = self.arguments.config_name or self.config_name
        if (overrides or config_name != self.config_name) and self._check(complete=False).problems:
            return 2
        print(help_page(self._search_path(), config_name, self.prog, overrides, every_key=every_key))
        return 0

    def _leave_to_hydra(self) -> None:
        hydra.main(config_path=self.config_path, config_name=self.config_name, **VERSION_BASE)(self.task)()

    def _job_name(self) -> str:
        module = self.task.__module__
        return Path(sys.modules[module].__file__).stem if module == "__main__" else module.rpartition(".")[2]

    def _search_path(self) -> list[str]:
        main, added = self.arguments.config_path or self.config_path, self.arguments.config_dir
        if "://" not in main:  # a folder, next to the command's file as for `hydra.main`
            main = f"file://{Path(sys.modules[self.task.__module__].__file__).parent.absolute() / main}"
        if added is None:
            return [main]
        folder = os.path.abspath(os.path.expanduser(added))
        if not os.path.isdir(folder):
            raise ConfigError(f"--config-dir {added}: no such folder", code="config-dir-missing", path=added)
        return [main, f"file://{folder}"]

    def _rename_overrides(self, base: Base | None) -> None:
        """Replace earlier keys on the command line by today's; which key one is depends on the config that it sets."""
        arguments = self.arguments
        earlier = [line for line in arguments.overrides if is_earlier(line)]
        if not earlier:
            return
        others = [line for line in arguments.overrides if line not in earlier]
        config = self._verdict(others, complete=False, base=base).config
        current = {line: current_override(line, config) for line in earlier}
        for line, new in current.items():
            if new != line:
                print(f"{self.prog}: {deprecation(line, new)}", file=sys.stderr)
        arguments.overrides = [current.get(line, line) for line in arguments.overrides]
        sys.argv[1:] = [current.get(argument, argument) for argument in sys.argv[1:]]

    def _check(self, *, complete: bool, base: Base | None = None) -> Verdict:
        verdict = self._verdict(self.arguments.overrides, complete=complete, base=base)
        if verdict.problems:
            print(report(verdict.problems, self.prog), file=sys.stderr)
        return verdict

    def _verdict(self, overrides: Sequence[str], *, complete: bool, base: Base | None = None) -> Verdict:
        name, options = self.arguments.config_name or self.config_name, {"multirun": self.arguments.multirun}
        if base is not None:
            return check_changes(base, self._search_path(), name, overrides, self.schema, **options)
        return check(self._search_path(), name, overrides, self.schema, complete=complete, **options)

    def _run(self, multirun: bool, base: Base | None, config: DictConfig) -> int:
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        overrides = [*self.arguments.overrides, f"hydra.mode={mode.name}"]
        job = _Job(self.task, self.prog, self.choose, None if base is None else config)
        if base is not None:  # of what Hydra composes only its own settings are used
            own = [line for line in overrides if line.lstrip("+~").startswith("hydra")]
            overrides = [*own, f"resume={QuotedString(str(base.file.parent), Quote.single).with_quotes()}"]
        config_name = self.arguments.config_name or self.config_name
        try:
            with initialized(self._search_path(), self._job_name()) as app, hydra_allow_list():
                if multirun:
                    return self._tell_failures(app.hydra.multirun(config_name, job, overrides))
                return getattr(app.hydra.run(config_name, job, overrides).return_value, "exit_code", 0)
        except OSError as error:
            if job.running or error.filename is None:
                raise
            raise UserError(
                f"{error.filename}: cannot be written ({error.strerror}); output_dir names the folder",
                code="output-not-writable",
                path=str(error.filename),
            ) from error

    def _tell_failures(self, batches: Any) -> int:
        """List a sweep's failed jobs; the exit code."""
        jobs = results_of(batches)
        failed = [job for job in jobs if isinstance(job.return_value, Failure)]
        if failed:
            print(f"{self.prog}: {len(failed)} of {len(jobs)} jobs failed:", file=sys.stderr)
        for job in failed:
            line = "; ".join(job.return_value.line.splitlines())
            print(f"  {job.hydra_cfg.hydra.sweep.subdir}: {line}", file=sys.stderr)
        return int(bool(failed))


class _SweepStopped(BaseException):
    """A job was asked to stop, by whom the sweep is meant; Hydra would hold an Exception back until all jobs have run."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__(str(stopped))
        self.stopped = stopped
        self.exit_code = stopped.exit_code

    def __reduce__(self) -> tuple[type[_SweepStopped], tuple[Stopped]]:
        return type(self), (self.stopped,)  # launchers carry it over from another process


class _Job:
    """The task as Hydra calls it: what it raises becomes a line on stderr and a Failure where that loses nothing."""

    def __init__(
        self, task: Callable[[DictConfig], Any], prog: str, choose: Choose, config: DictConfig | None = None
    ) -> None:
        functools.update_wrapper(self, task)
        self.task = task
        self.prog = prog
        self.choose = choose  # which jobs of a sweep to run, see `start_sweep`
        self.config = config  # to run instead of what Hydra composes
        self.running = False

    def __call__(self, config: DictConfig) -> Any:
        self.running = True
        use_default_start_method()
        try:
            config = config if self.config is None else self.config
            expand_config(config)
            update_keys(config)
            with quiet_libraries():  # the worker of a launcher does not run under `run`
                result = self.task(config)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # how Lightning ends when it is interrupted
                raise KeyboardInterrupt from None
            raise
        except Exception as raised:
            error = cache_error(raised) or raised
            mode = HydraConfig.get().mode
            # Other sweepers than Hydra's own must see the exception: they take a job's return value for its score.
            swept = mode == RunMode.MULTIRUN and is_grid(HydraConfig.get())
            user_error = isinstance(error, UserError)
            if isinstance(error, Stopped) and mode == RunMode.MULTIRUN:
                raise _SweepStopped(error) from raised
            if _shows_traceback() or not (swept or (user_error and mode == RunMode.RUN)):
                raise
            if not user_error:
                traceback.print_exc()
            line = _line(error)
            print(f"{self.prog}: {f'{HydraConfig.get().sweep.subdir}: ' if swept else ''}{line}", file=sys.stderr)
            result = Failure(line, error.exit_code if user_error else 1)
        self.running = False
        return result


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ConfigError) else getattr(error, "exit_code", 1)


def _shows_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _line(error: BaseException) -> str:
    """What a user needs to read of an exception."""
    text = str(error)
    if isinstance(error, _SweepStopped):
        return f"{text}; the same command goes on with the sweep"
    if isinstance(error, UserError):
        return text.strip()
    if isinstance(error, HydraException):
        return "; ".join(line.strip() for line in f"{text}\n{error.__cause__ or ''}".splitlines() if line.strip())
    return one_line(error)
