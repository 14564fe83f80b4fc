"""The command line: the group of commands, its help, and what an error or an interruption says."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from vizrobust import requests

# What only some invocations need is imported where it is needed: the program's help comes at once.

COMMANDS = tuple(requests.COMMANDS)
# Commands whose work is divided among the processes that torchrun starts, and whose files one of them writes.
TOGETHER = tuple(name for name in COMMANDS if requests.COMMANDS[name].parallel)


# Headings of the program's help.
GROUPS = {
    "look": "Look inside networks",
    "evaluate": "Measure robustness",
    "train": "Train",
    "study": "Study",
    "files": "Files and pages",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it kills: it stops a command as Ctrl-C does."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises `Terminated` as long as the block lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Commands(click.Group):
    """The commands, in the order of a person's path; errors of the library become one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands under the headings of their groups."""
        for group, title in GROUPS.items():
            mine = [name for name in COMMANDS if requests.COMMANDS[name].group == group]
            with formatter.section(title):
                formatter.write_dl([(name, requests.COMMANDS[name].summary) for name in mine])
        with formatter.section("About itself"):
            formatter.write_dl([(name, command.get_short_help_str(70)) for name, command in ABOUT_ITSELF.items()])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from vizrobust.cli.generated import command

        return command(name) if name in COMMANDS else ABOUT_ITSELF.get(name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; beside others where torchrun started this process."""
        from vizrobust.parallel import launched

        try:
            launch = launched()
        except ValueError as error:
            click.ClickException(str(error)).show()
            sys.exit(1)
        if launch is None:
            with interrupted_by_sigterm():
                return super().main(*args, **kwargs)
        from vizrobust.cli.show import run_together

        def command() -> Any:
            with interrupted_by_sigterm():
                return super(Commands, self).main(*args, **(kwargs | {"standalone_mode": False}))

        return run_together(launch, command)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in (*COMMANDS, *ABOUT_ITSELF) and not args[0].startswith("-"):
            _no_command(ctx, args[0])
        from vizrobust.parallel import launched

        if args and args[0] in COMMANDS and args[0] not in TOGETHER and launched() is not None:
            ctx.fail(f"{args[0]!r} runs in one process; start it without torchrun (with it: {', '.join(TOGETHER)})")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from vizrobust.cli.show import say, stopped, visible

        debug = bool(os.environ.get("VIZROBUST_DEBUG"))
        if not debug:
            warnings.showwarning = lambda message, *_args, **_kwargs: say(f"note: {message}")
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = visible(error.message)  # type: ignore[misc]
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as error:
            say("\n" + stopped(_resumable(ctx.invoked_subcommand)))
            raise click.exceptions.Exit(128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)) from None
        except BrokenPipeError:
            # The reader of a pipe has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(visible(sentence(error))) from error


def _no_command(ctx: click.Context, name: str) -> None:
    from vizrobust.spec import unknown

    ctx.fail(unknown(name, COMMANDS, "command"))


@click.command("help")
@click.argument("name", required=False, metavar="[COMMAND]")
@click.pass_context
def help_(ctx: click.Context, name: str | None) -> None:
    """Show the help of a command, or of all."""
    whole = ctx.parent
    assert whole is not None
    if name is None:
        click.echo(whole.get_help())
        return
    found = main.get_command(whole, name)
    if found is None:
        _no_command(ctx, name)
        return
    with click.Context(found, info_name=name, parent=whole) as own:
        click.echo(found.get_help(own))


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script that completes commands in your shell.

    \b
    eval "$(vizrobust completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "vizrobust", "_VIZROBUST_COMPLETE").source())


# What is about the program and not about networks.
ABOUT_ITSELF: dict[str, click.Command] = {"help": help_, "completion": completion}


def _resumable(name: str | None) -> bool:
    return name in COMMANDS and requests.COMMANDS[name].resumable


def sentence(error: Exception) -> str:
    """One sentence for a person: what went wrong, and what to do."""
    from vizrobust.requests import ParameterError

    if isinstance(error, OSError) and error.errno is not None:
        reason = os.strerror(error.errno)
        where = f" {error.filename!r}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"cannot write{where}: {reason}; make room and start the same command again, what is there is kept"
        return f"cannot open or write{where}: {reason}"
    if isinstance(error, ParameterError):
        return error.text(lambda name: "--" + name.replace("_", "-"))
    if isinstance(error, ValueError | FileNotFoundError | ConnectionError):
        return str(error)
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line} (VIZROBUST_DEBUG=1 shows where)"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="vizrobust")
def main() -> None:
    """See and measure what adversarial training does to an image classifier.

    Start with `vizrobust neurons`: it renders what excites the class units of the built-in sweep on photographs,
    trained with 0 to 8 attack steps, and says where the gallery is.

    A REF is a built-in checkpoint (vizrobust list models), a file, a training run's folder, or torchvision:NAME.
    """
