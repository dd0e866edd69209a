"""The command line: one subcommand a file, and one way to fail."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import tyro

from cookbook_fx.errors import CookbookError
from shell.cli.chat import Chat
from shell.cli.distill import Distill
from shell.cli.dpo import DPO
from shell.cli.eval import Eval
from shell.cli.export import Export
from shell.cli.models import Models
from shell.cli.replay import Replay
from shell.cli.report import Report
from shell.cli.rl import RL
from shell.cli.rlhf import RLHF
from shell.cli.sample import Sample
from shell.cli.serve import Serve
from shell.cli.sft import SFT
from shell.cli.show import Show
from shell.cli.watch import Watch

Command = (
    Annotated[SFT, tyro.conf.subcommand("sft")]
    | Annotated[DPO, tyro.conf.subcommand("dpo")]
    | Annotated[RL, tyro.conf.subcommand("rl")]
    | Annotated[Distill, tyro.conf.subcommand("distill")]
    | Annotated[RLHF, tyro.conf.subcommand("rlhf")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Models, tyro.conf.subcommand("models")]
)

_DESCRIPTION = """Fine-tune, serve and sample language models, on this machine or on any engine that
speaks the Tinker protocol.

Begin with
$ cookbook-fx sft
$ cookbook-fx sft --data mine.jsonl --run-dir runs/mine
$ cookbook-fx dpo
$ cookbook-fx rl
$ cookbook-fx distill --teacher tinker://...
$ cookbook-fx COMMAND --help"""

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command given on the command line.

    Returns:
        The exit status: 0 done, 1 failed, 130 interrupted. COOKBOOK_FX_DEBUG=1 in the
        environment shows where a failure came from.
    """
    command: Command = tyro.cli(
        Command,
        args=arguments,
        prog="cookbook-fx",
        description=_DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    if not os.environ.get("COOKBOOK_FX_DEBUG"):
        # What goes wrong is told once, in our own words.
        for library in ("absl", "tinker"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
    # Runs, checkpoints and keys are nobody else's on a machine that several people share.
    previous = os.umask(0o077)
    try:
        return _with_path(command).run()
    except CookbookError as error:
        if os.environ.get("COOKBOOK_FX_DEBUG"):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return _INTERRUPTED
    finally:
        os.umask(previous)


def _with_path(command: Command) -> Command:
    """A training command whose starting weights have a `tinker://` path."""
    if not isinstance(command, SFT | DPO | RL | Distill):
        return command
    model = command.model
    if model.load_checkpoint is None or model.load_checkpoint.startswith("tinker://"):
        return command
    from shell.cli.options import local_checkpoint

    path = local_checkpoint(model.load_checkpoint, model=model.model, base_url=command.base_url)
    return replace(command, model=replace(model, load_checkpoint=path))


if __name__ == "__main__":
    sys.exit(main())
