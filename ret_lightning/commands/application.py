"""Base of the console scripts: a Hydra application that checks its config first and prints user errors in one line."""

from __future__ import annotations

import functools
import inspect
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
from ret_lightning.config.checker.config_changes import StoredConfig, check_changes
from ret_lightning.config.checker.config_check import CheckResult, check
from ret_lightning.config.config_errors import format_problems
from ret_lightning.config.home_folder import expand_config
from ret_lightning.config.initialization import VERSION_BASE, hydra_initialized
from ret_lightning.config.sweeping import Choose, choose_all, collect_results, is_grid
from ret_lightning.config.targets.allowed_targets import hydra_allow_list
from ret_lightning.config.targets.renamed_keys import current_override, is_earlier, update_keys
from ret_lightning.errors import ConfigError, Stopped, UserError, one_line
from ret_lightning.runtime.cache_errors import cache_error
from ret_lightning.runtime.child_process import use_default_start_method
from ret_lightning.runtime.console import abandon_stdout, quiet_libraries
from ret_lightning.runtime.deprecation import deprecation

resolvers.register_resolvers()  # at import: workers of a launcher import only this module before they compose a config


@dataclass(frozen=True)
class Failure:
    """The result of a failed job, returned instead of raised so that the other jobs of a sweep run.

    Attributes:
        line: the error message.
        exit_code: exit code of the command.
    """

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
    choose: Choose = choose_all,
    base: Callable[[Sequence[str]], StoredConfig | None] = lambda overrides: None,
    before_run: Callable[[DictConfig], None] = lambda config: None,
) -> None:
    """Run a command: parse the command line, check the config, then run the task once, or once per job of a sweep.

    If the config has problems, all of them are printed and nothing is run. In a sweep, a failed job does not stop the other
    jobs; failures are listed at the end. Hydra handles flags such as `--info`.

    Args:
        task: function of a job. Its return value is passed to Hydra's sweeper.
        config_name: name of the primary config, unless `--config-name` names another one.
        schema: dataclass of the top-level keys, as described in `ret_lightning.config.checker.config_check`.
        prog: name of the command, the start of every message.
        config_path: folder or package of the configs, as for `hydra.main`.
        verbatim: keys whose values are strings and not parsed: commas, quotes, brackets and digits have no special meaning.
            Only the value `null` is null.
        choose: selects the jobs of a sweep to run.
        base: given the overrides of the command line, returns the stored config that they apply to; None for a new config.
            The task is called with the stored config after the overrides.
        before_run: called with the config of a single run before anything is written; raises an error to refuse the run.

    Raises:
        SystemExit: with code 2 for a problem in the config or on the command line, 1 for a failure, 130 for an interrupt.
            With HYDRA_FULL_ERROR=1 the exception itself is raised, for its traceback.
    """
    # This logger prints cache statistics when an interrupted process exits.
    logging.getLogger("torch._subclasses").setLevel(logging.WARNING)
    try:
        arguments = read_arguments(verbatim)
        application = _Application(task, config_name, schema, prog, config_path, arguments, choose, base, before_run)
        with quiet_libraries(), sigterm_raises():
            code = application.execute()
    except BrokenPipeError:  # `ret-train --help | head`
        abandon_stdout()
        code = 0
    except (KeyboardInterrupt, _SweepStopped, UserError, HydraException) as error:
        if _shows_traceback():
            raise
        print(
            f"{prog}: {'interrupted' if isinstance(error, KeyboardInterrupt) else _format_error(error)}",
            file=sys.stderr,
        )
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
    base: Callable[[Sequence[str]], StoredConfig | None]
    before_run: Callable[[DictConfig], None]

    def execute(self) -> int:
        """Execute the command line, and return the exit code."""
        arguments = self.arguments
        if arguments.help:
            return self._help()
        if arguments.hydra_help or arguments.info or arguments.shell_completion:
            try:
                self._delegate_to_hydra()
            except Exception:  # a problem in the config may be the cause
                if _shows_traceback() or not self._check(complete=False).problems:
                    raise
                return 2
            return 0
        base = self.base(arguments.overrides)
        self._rename_overrides(base)
        result = self._check(complete=not arguments.cfg, base=base)
        self._warn(result.deprecations)
        if result.problems:
            return 2
        if arguments.cfg == "job" and base is not None:
            print(OmegaConf.to_yaml(result.config, resolve=arguments.resolve), end="")
            return 0
        if arguments.cfg:
            self._delegate_to_hydra()
            return 0
        multirun = result.multirun or result.dry_run  # a dry run is a sweep, possibly of one job
        assert result.config is not None  # else there are problems
        expand_config(result.config)
        self._warn(update_keys(result.config))
        if not multirun:
            self.before_run(result.config)
        return self._run(multirun, base, result.config)

    def _help(self) -> int:
        """Print the help page of `--help` or `--help all`, for the options that the command line chooses."""
        overrides = [override for override in self.arguments.overrides if override != "all"]
        every_key = len(overrides) < len(self.arguments.overrides)
        self.arguments.overrides = overrides
        config_name = self.arguments.config_name or self.config_name
        if (overrides or config_name != self.config_name) and self._check(complete=False).problems:
            return 2
        print(help_page(self._search_path(), config_name, self.prog, overrides, every_key=every_key))
        return 0

    def _delegate_to_hydra(self) -> None:
        hydra.main(config_path=self.config_path, config_name=self.config_name, **VERSION_BASE)(self.task)()

    def _job_name(self) -> str:
        module = self.task.__module__
        return Path(inspect.getfile(sys.modules[module])).stem if module == "__main__" else module.rpartition(".")[2]

    def _search_path(self) -> list[str]:
        main, added = self.arguments.config_path or self.config_path, self.arguments.config_dir
        if "://" not in main:  # a folder, relative to the file of the command as for `hydra.main`
            main = f"file://{Path(inspect.getfile(sys.modules[self.task.__module__])).parent.absolute() / main}"
        if added is None:
            return [main]
        folder = os.path.abspath(os.path.expanduser(added))
        if not os.path.isdir(folder):
            raise ConfigError(f"--config-dir {added}: folder not found", code="config-dir-missing", path=added)
        return [main, f"file://{folder}"]

    def _rename_overrides(self, base: StoredConfig | None) -> None:
        """Replace earlier keys on the command line by current ones, which depend on the config that they set."""
        arguments = self.arguments
        earlier = [line for line in arguments.overrides if is_earlier(line)]
        if not earlier:
            return
        others = [line for line in arguments.overrides if line not in earlier]
        config = self._check_silently(others, complete=False, base=base).config
        current = {line: current_override(line, config) for line in earlier}
        self._warn([deprecation(line, new) for line, new in current.items() if new != line])
        arguments.overrides = [current.get(line, line) for line in arguments.overrides]
        sys.argv[1:] = [current.get(argument, argument) for argument in sys.argv[1:]]

    def _warn(self, messages: Sequence[str]) -> None:
        for message in messages:
            print(f"{self.prog}: {message}", file=sys.stderr)

    def _check(self, *, complete: bool, base: StoredConfig | None = None) -> CheckResult:
        result = self._check_silently(self.arguments.overrides, complete=complete, base=base)
        if result.problems:
            print(format_problems(result.problems, self.prog), file=sys.stderr)
        return result

    def _check_silently(
        self, overrides: Sequence[str], *, complete: bool, base: StoredConfig | None = None
    ) -> CheckResult:
        name, options = self.arguments.config_name or self.config_name, {"multirun": self.arguments.multirun}
        if base is not None:
            return check_changes(base, self._search_path(), name, overrides, self.schema, **options)
        return check(self._search_path(), name, overrides, self.schema, complete=complete, **options)

    def _run(self, multirun: bool, base: StoredConfig | None, config: DictConfig) -> int:
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        overrides = [*self.arguments.overrides, f"hydra.mode={mode.name}"]
        job = _Job(self.task, self.prog, self.choose, None if base is None else config)
        if base is not None:  # only Hydra's own settings are composed
            own = [line for line in overrides if line.lstrip("+~").startswith("hydra")]
            overrides = [*own, f"resume={QuotedString(str(base.file.parent), Quote.single).with_quotes()}"]
        config_name = self.arguments.config_name or self.config_name
        try:
            with hydra_initialized(self._search_path(), self._job_name()) as context, hydra_allow_list():
                app = context.hydra
                assert app is not None
                if multirun:
                    return self._report_failures(app.multirun(config_name, job, overrides))
                return getattr(app.run(config_name, job, overrides).return_value, "exit_code", 0)
        except OSError as error:
            if job.running or error.filename is None:
                raise
            raise UserError(
                f"{error.filename}: cannot write ({error.strerror}); set output_dir to a writable folder",
                code="output-not-writable",
                path=str(error.filename),
            ) from error

    def _report_failures(self, batches: Any) -> int:
        """Print the failed jobs of a sweep, and return the exit code."""
        jobs = collect_results(batches)
        failed = [job for job in jobs if isinstance(job.return_value, Failure)]
        if failed:
            print(f"{self.prog}: {len(failed)} of {len(jobs)} jobs failed:", file=sys.stderr)
        for job in failed:
            line = "; ".join(job.return_value.line.splitlines())
            assert job.hydra_cfg is not None  # set before a job runs
            print(f"  {job.hydra_cfg.hydra.sweep.subdir}: {line}", file=sys.stderr)
        return int(bool(failed))


class _SweepStopped(BaseException):
    """Stops a sweep because a job was stopped. Not an Exception, which Hydra raises only after all jobs have run."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__(str(stopped))
        self.stopped = stopped
        self.exit_code = stopped.exit_code

    def __reduce__(self) -> tuple[type[_SweepStopped], tuple[Stopped]]:
        return type(self), (self.stopped,)  # launchers pickle it between processes


class _Job:
    """The task as called by Hydra. Exceptions become a line on stderr and a `Failure`, unless the sweeper must see them."""

    def __init__(
        self, task: Callable[[DictConfig], Any], prog: str, choose: Choose, config: DictConfig | None = None
    ) -> None:
        functools.update_wrapper(self, task)
        self.task = task
        self.prog = prog
        self.choose = choose  # read by `start_sweep`
        self.config = config  # replaces the config that Hydra composes
        self.running = False

    def __call__(self, config: DictConfig) -> Any:
        self.running = True
        use_default_start_method()
        try:
            config = config if self.config is None else self.config
            expand_config(config)
            update_keys(config)
            with quiet_libraries():  # workers of a launcher do not call `run`
                result = self.task(config)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits like this on an interrupt
                raise KeyboardInterrupt from None
            raise
        except Exception as raised:
            failure = cache_error(raised) or raised
            mode = HydraConfig.get().mode
            # Sweepers other than a grid must see the exception, because they use the return value as the score.
            swept = mode == RunMode.MULTIRUN and is_grid(HydraConfig.get())
            user_error = isinstance(failure, UserError)
            if isinstance(failure, Stopped) and mode == RunMode.MULTIRUN:
                raise _SweepStopped(failure) from raised
            if _shows_traceback() or not (swept or (user_error and mode == RunMode.RUN)):
                raise
            if not user_error:
                traceback.print_exc()
            line = _format_error(failure)
            print(f"{self.prog}: {f'{HydraConfig.get().sweep.subdir}: ' if swept else ''}{line}", file=sys.stderr)
            result = Failure(line, failure.exit_code if isinstance(failure, UserError) else 1)
        self.running = False
        return result


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ConfigError) else getattr(error, "exit_code", 1)


def _shows_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _format_error(error: BaseException) -> str:
    """Format an exception for the user."""
    text = str(error)
    if isinstance(error, _SweepStopped):
        return f"{text}; run the same command again to resume the sweep"
    if isinstance(error, UserError):
        return text.strip()
    if isinstance(error, HydraException):
        return "; ".join(line.strip() for line in f"{text}\n{error.__cause__ or ''}".splitlines() if line.strip())
    return one_line(error)
