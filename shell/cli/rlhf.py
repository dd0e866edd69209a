"""`cookbook-fx rlhf`: conversations, a model of preferences, reinforcement by its opinion."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import tyro

from shell.cli.options import BaseURL
from shell.cli.recording import Recording, RunDir, run_name
from shell.recipes.rlhf.config import RLHFChoice, Stages
from shell.training import Adam, ModelChoice

if TYPE_CHECKING:
    from rich.console import Console

    from shell.cli.options import Address
    from shell.recipes.rlhf.pipeline import RLHFResult
    from shell.stores import RunFolder
    from shell.stores.run_folder import JSON
    from shell.training.events import Observer

_INTERRUPTED = 130
_TITLES = {
    "sft": "Stage 1: fine-tuning on conversations",
    "reward": "Stage 2: a model of preferences",
    "rl": "Stage 3: reinforcement by its opinion",
}


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True, kw_only=True)
class RLHF:
    """Train a model on preferences in three stages: SFT, reward model, reinforcement.

    Without options: fetches a small chat model, has a copy of it learn which of two answers is
    preferred, lets the model's own answers compete before that judge, and counts how often the
    outcome wins against the beginning by a rule that neither learned from: the shorter answer. The
    same command again continues what was interrupted, in the stage that it was in.

    For example
    $ cookbook-fx rlhf
    $ cookbook-fx rlhf --sft-steps 30 --run-dir runs/cook
    $ cookbook-fx rlhf --preferences mine.jsonl --prompts questions.jsonl --run-dir runs/mine

    Args:
        stages: what each learns from, how long and how fast.
        model: what is trained.
        adam: the optimizer, AdamW.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        run_dir: the folder the run leaves, a path or a URL as s3://bucket/run; in it one for each
            stage.
        recording: what becomes of the stages found there, and where measurements are sent.
        seed: of the initial LoRA weights, of the data's order and of what is sampled.
    """

    stages: Stages = field(default_factory=Stages)
    model: ModelChoice = field(default_factory=ModelChoice)
    adam: Adam = field(default_factory=Adam)
    base_url: BaseURL = None
    run_dir: RunDir = "runs/rlhf"
    recording: Recording = field(default_factory=Recording)
    seed: int = 0

    def run(self) -> int:
        """Does the stages that are left; 0 when finished, 130 when interrupted."""
        from rich.console import Console

        from shell.cli.options import engine
        from shell.recipes.rlhf.pipeline import run_description

        console = Console(highlight=False, markup=False, soft_wrap=True)
        description = run_description(self.choice, base_url=self.base_url)
        console.print(f"Run folder: {self.run_dir}")
        with engine(self.base_url, model=self.model.model, say=console.print) as address:
            console.print(f"Engine: {address.base_url}")
            run = _train(self, description, console=console, address=address)
            return asyncio.run(run)

    @property
    def choice(self) -> RLHFChoice:
        """What is chosen about the run, wherever it is done."""
        return RLHFChoice(stages=self.stages, model=self.model, adam=self.adam, seed=self.seed)


async def _train(
    command: RLHF,
    description: "Mapping[str, JSON]",
    *,
    console: "Console",
    address: "Address",
) -> int:
    """Does the stages, and shows what came of them."""
    from cookbook_fx.renderers import get_renderer
    from shell.cli.interrupts import stop_on_signal
    from shell.cli.progress import Watcher
    from shell.cli.recording import open_run
    from shell.cli.report import report_run
    from shell.clients import connect
    from shell.hub import load_tokenizer, resolve_model
    from shell.hub.weights import context_length
    from shell.recipes.chat_sft import chosen_renderer
    from shell.recipes.rlhf.pipeline import RLHFRun

    def watched(stage: str) -> "Iterator[Observer]":
        console.print(f"\n{_TITLES[stage]}", style="bold")
        with Watcher(console) as watcher:
            yield watcher

    @contextmanager
    def opened(stage: str, config: "Mapping[str, JSON]") -> "Iterator[RunFolder]":
        name = f"{run_name(command.run_dir, command.recording)}-{stage}"
        with open_run(
            f"{command.run_dir.rstrip('/')}/{stage}",
            replace(command.recording, run_name=name),
            config=config,
            console=console,
        ) as folder:
            earlier = folder.checkpoints.latest()
            yield folder
            if earlier is None or not earlier.final:
                report_run(folder.path, console)

    source = resolve_model(command.model.model, with_weights=command.base_url is None)
    tokenizer = load_tokenizer(source.directory)
    message = "Stopping: finishing the step under way and saving. Ctrl-C again quits at once."
    with stop_on_signal(message=message) as stop:
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            run = RLHFRun(
                choice=command.choice,
                service=service,
                renderer=get_renderer(chosen_renderer(command.model), tokenizer),
                tokenizer=tokenizer,
                context_length=context_length(source.directory),
                opened=opened,
                description=description,
                watched=watched,
                stop=stop,
            )
            result = await run.go()
    if result is None:
        console.print("Stopped. The same command continues this run.")
        return _INTERRUPTED
    _print_results(console, result)
    return 0


def _print_results(console: "Console", result: "RLHFResult") -> None:
    matches = result.matches
    console.print(
        f"\nAgainst the model it began as, on {sum(matches)} held-out prompts, judged by length: "
        f"{matches.wins} won, {matches.losses} lost, {matches.ties} tied ({matches.win_rate:.0%})"
    )
    console.print(f"Reward model: {result.reward_model.sampler_path}")
    console.print(f"Trained model: {result.policy.sampler_path}")
    console.print(
        f'Ask it: cookbook-fx sample --checkpoint {result.policy.sampler_path} "Who are you?"'
    )
