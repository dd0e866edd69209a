"""`cookbook-fx rl`: train a model by reinforcement on a task that can be checked."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from shell.cli.options import BaseURL
from shell.cli.recording import Recording, RunDir
from shell.recipes.evaluation.config import Tasks
from shell.recipes.rl.config import (
    Arithmetic,
    Episodes,
    GuessNumber,
    Learning,
    Math,
    Pace,
    ReasoningGym,
    Sampling,
    Shorter,
)
from shell.training import Adam, ModelChoice, RLCadence, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from shell.cli.options import Address
    from shell.recipes.rl.recipes import RLChoice
    from shell.recipes.rl.workers import Workers
    from shell.stores import RunCheckpoint, RunFolder
    from shell.training.rl import RLData
    from shell.training.rl_config import RLConfig

_INTERRUPTED = 130
_REWARD = "env/all/reward/total"
_HELD_OUT_REWARD = "test/env/all/reward/total"

Recipe = (
    Annotated[Arithmetic, tyro.conf.subcommand("arithmetic")]
    | Annotated[GuessNumber, tyro.conf.subcommand("guess-number")]
    | Annotated[Math, tyro.conf.subcommand("math")]
    | Annotated[ReasoningGym, tyro.conf.subcommand("reasoning-gym")]
    | Annotated[Shorter, tyro.conf.subcommand("shorter")]
)


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs)
@dataclass(frozen=True, kw_only=True)
class RL:
    """Train a model by reinforcement on a task whose answers can be checked.

    Without options: fetches a small chat model, has it add numbers, and lets what was right make
    itself likelier, until most of it is. Another task is named right after the command, before the
    options. The same command again continues a run that was interrupted.

    For example
    $ cookbook-fx rl
    $ cookbook-fx rl math --data mine.jsonl --run-dir runs/math
    $ cookbook-fx rl guess-number --largest 20 --run-dir runs/guess
    $ cookbook-fx rl math --help
    $ cookbook-fx rl --max-steps-off-policy 2 --loss ppo   (samples while it trains)

    Args:
        recipe: what it learns.
        model: what is trained.
        schedule: how long and how fast.
        adam: the optimizer, AdamW.
        cadence: what is done how often; may be changed when a run is continued.
        tasks: what the weights are measured on besides, whenever they are evaluated; may be changed
            when a run is continued: the rows name what they were measured on.
        sampling: how the model answers while it learns.
        learning: what a step learns from its groups.
        pace: in which order the run samples and trains.
        episodes: how far an episode may go, and what happens where one fails; None is no limit.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        run_dir: the folder the run leaves, a path or a URL (s3://bucket/run): measurements,
            episodes, checkpoints, configuration. A run found there is continued.
        recording: what becomes of a run found there, and where its measurements are sent.
        seed: of the initial LoRA weights, of the problems and of what is sampled.
    """

    recipe: Recipe = field(default_factory=Arithmetic)
    model: ModelChoice = field(default_factory=ModelChoice)
    schedule: Schedule = field(
        default_factory=lambda: Schedule(learning_rate=5e-4, lr_schedule="constant")
    )
    adam: Adam = field(default_factory=Adam)
    cadence: RLCadence = field(default_factory=RLCadence)
    sampling: Sampling = field(default_factory=Sampling)
    learning: Learning = field(default_factory=Learning)
    pace: Pace = field(default_factory=Pace)
    episodes: Episodes = field(default_factory=Episodes)
    tasks: Tasks = field(default_factory=Tasks)
    base_url: BaseURL = None
    run_dir: RunDir = "runs/rl"
    recording: Recording = field(default_factory=Recording)
    seed: int = 0

    def run(self) -> int:
        """Fetches, trains, reports; 0 when finished, 130 when interrupted."""
        from rich.console import Console

        from shell.cli.options import engine
        from shell.cli.recording import open_run
        from shell.cli.report import report_run
        from shell.recipes.rl.recipes import MAY_DIFFER, WHY_NOT, run_description
        from shell.recipes.rl.workers import Workers

        console = Console(highlight=False, markup=False, soft_wrap=True)
        description = run_description(self.choice, base_url=self.base_url)
        with (
            open_run(
                self.run_dir,
                self.recording,
                config=description,
                console=console,
                may_differ=MAY_DIFFER,
                reasons=WHY_NOT,
            ) as folder,
            Workers() as workers,
        ):
            console.print(f"Run folder: {self.run_dir}")
            latest = folder.checkpoints.latest()
            if latest is not None and latest.final:
                console.print("This run is finished. To train again, choose another --run-dir.")
                _print_results(console, folder, latest)
                return 0
            config, data = _load(self, console, workers)
            with engine(self.base_url, model=self.model.model, say=console.print) as address:
                console.print(f"Engine: {address.base_url}")
                run = _train(
                    self,
                    config,
                    data,
                    console=console,
                    address=address,
                    folder=folder,
                    workers=workers,
                )
                status = asyncio.run(run)
            report_run(folder.path, console)
            return status

    @property
    def choice(self) -> "RLChoice":
        """What is chosen about the run, wherever it is done."""
        from shell.recipes.rl.recipes import RLChoice

        return RLChoice(
            recipe=self.recipe,
            model=self.model,
            schedule=self.schedule,
            adam=self.adam,
            cadence=self.cadence,
            sampling=self.sampling,
            learning=self.learning,
            pace=self.pace,
            episodes=self.episodes,
            seed=self.seed,
        )


def _load(command: RL, console: "Console", workers: "Workers") -> "tuple[RLConfig, RLData]":
    """Finds the model's tokenizer and makes the problems ready, saying what is done."""
    from cookbook_fx.renderers import get_renderer
    from shell.cli.options import warn_of_renderer
    from shell.hub import load_tokenizer, resolve_model
    from shell.hub.weights import context_length
    from shell.recipes.chat_sft import chosen_renderer
    from shell.recipes.rl.recipes import recipe_name, rl_config, rl_data

    source = resolve_model(
        command.model.model, say=console.print, with_weights=command.base_url is None
    )
    console.print(f"Model: {source.name}, in {source.directory}")
    tokenizer = load_tokenizer(source.directory)
    name = chosen_renderer(command.model)
    renderer = get_renderer(name, tokenizer)
    warn_of_renderer(name, model=command.model.model, say=console.print)
    config = rl_config(command.choice, context_window=context_length(source.directory))
    data = asyncio.run(
        rl_data(command.choice, config, renderer=renderer, tokenizer=tokenizer, workers=workers)
    )
    groups = command.recipe.groups
    console.print(
        f"Task: {recipe_name(command.recipe)}; a step is {groups.group_size} attempts at each of "
        f"{groups.groups_per_batch} problems"
    )
    return config, data


async def _train(
    command: RL,
    config: "RLConfig",
    data: "RLData",
    *,
    console: "Console",
    address: "Address",
    folder: "RunFolder",
    workers: "Workers",
) -> int:
    """Trains, and shows what came of it."""
    from shell.cli.interrupts import stop_on_signal
    from shell.cli.progress import Watcher
    from shell.clients import connect
    from shell.recipes.evaluation.builders import chosen_evaluators
    from shell.training.rl import train_rl

    message = "Stopping: finishing the step under way and saving. Ctrl-C again quits at once."
    with stop_on_signal(message=message) as stop:
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            evaluators = data.evaluators + await chosen_evaluators(
                command.tasks, service=service, model=command.model, workers=workers
            )
            with Watcher(console) as watcher:
                result = await train_rl(
                    config,
                    service=service,
                    data=replace(data, evaluators=evaluators),
                    folder=folder,
                    observe=watcher,
                    stop=stop,
                )
            if not result.finished or result.checkpoint is None:
                console.print("Stopped. The same command continues this run.")
                return _INTERRUPTED
            _print_results(console, folder, result.checkpoint)
            return 0


def _print_results(console: "Console", folder: "RunFolder", final: "RunCheckpoint") -> None:
    """What came of a finished run and how to go on with it."""
    rows = folder.metrics.rows()
    rewards = [row[_REWARD] for row in rows if row.get(_REWARD) is not None]
    if rewards:
        _print_rewards(console, rewards)
    measured = [row for row in rows if row.get(_HELD_OUT_REWARD) is not None]
    if measured:
        first, last = measured[0], measured[-1]
        console.print(
            f"Held-out reward: {first[_HELD_OUT_REWARD]:.3f} after {first['step']} steps, "
            f"{last[_HELD_OUT_REWARD]:.3f} after {last['step']} steps"
        )
    console.print(f"Measurements: {folder.metrics.path}")
    console.print(f"Episodes: {folder.rollouts.path}")
    console.print(
        f"Look into a step: cookbook-fx replay {folder.path} --step {max(0, len(rewards) - 1)} "
        "--show 4"
    )
    console.print(f"Trained model: {final.sampler_path}")
    console.print(
        f'Ask it: cookbook-fx sample --checkpoint {final.sampler_path} "What is 23 + 45?"'
    )
    console.print(
        f"Train it further: cookbook-fx rl --load-checkpoint {final.state_path} "
        f"--run-dir {folder.path}-2"
    )


def _print_rewards(console: "Console", rewards: "Sequence[float]") -> None:
    """The reward of every step as a curve, and what it was at both ends."""
    from shell.cli.curves import curve

    is_unicode = console.encoding.startswith("utf")
    console.print(f"\nMean reward of each of {len(rewards)} steps", style="bold")
    console.print(curve(rewards, is_unicode=is_unicode))
    tenth = max(1, len(rewards) // 10)
    begin, end = sum(rewards[:tenth]) / tenth, sum(rewards[-tenth:]) / tenth
    steps = "step" if tenth == 1 else f"{tenth} steps"
    console.print(f"Reward: {begin:.3f} in the first {steps}, {end:.3f} in the last {steps}")
