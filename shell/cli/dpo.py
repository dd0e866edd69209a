"""`cookbook-fx dpo`: train a model on preferences."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shell.cli.options import BaseURL
from shell.cli.recording import Recording, RunDir
from shell.training import (
    Adam,
    Cadence,
    DPOConfig,
    ModelChoice,
    PreferenceChoice,
    PreferenceData,
    Schedule,
)

if TYPE_CHECKING:
    from rich.console import Console

    from shell.cli.options import Address
    from shell.recipes.preferences import LoadedPreferences, Preferences
    from shell.stores import RunCheckpoint, RunFolder

_INTERRUPTED = 130
# As many as are kept to be looked at.
_PAIRS = 3
# Margins below it are what policy and reference differ by in rounding.
_ROUNDING = 1e-4


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Train a model on preferences: of two answers to a question, which is better.

    Without options: fetches a small chat model, trains a LoRA on the preferences that come with
    the library, and shows how often it ranks held-out ones right, before and after. The same
    command again continues a run that was interrupted, against the same reference.

    For example
    $ cookbook-fx dpo
    $ cookbook-fx dpo --data mine.jsonl --test-size 50 --run-dir runs/mine
    $ cookbook-fx dpo --load-checkpoint tinker://.../weights/final --loss ipo

    Args:
        model: what is trained.
        data: what it is trained and measured on.
        preference: what is learned from a preference, and against which reference.
        schedule: how long and how fast.
        adam: the optimizer, AdamW.
        cadence: what is done how often; may be changed when a run is continued.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        run_dir: the folder the run leaves, a path or a URL (s3://bucket/run): measurements,
            checkpoints, configuration. A run found there is continued.
        recording: what becomes of a run found there, and where its measurements are sent.
        seed: of the initial LoRA weights and of the order of the data.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    data: PreferenceData = field(default_factory=PreferenceData)
    preference: PreferenceChoice = field(default_factory=PreferenceChoice)
    schedule: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-4, num_epochs=3))
    adam: Adam = field(default_factory=Adam)
    cadence: Cadence = field(default_factory=lambda: Cadence(eval_every=20))
    base_url: BaseURL = None
    run_dir: RunDir = "runs/dpo"
    recording: Recording = field(default_factory=Recording)
    seed: int = 0

    def run(self) -> int:
        """Fetches, trains, reports; 0 when finished, 130 when interrupted."""
        from rich.console import Console

        from shell.cli.options import engine
        from shell.cli.recording import open_run
        from shell.cli.report import report_run
        from shell.recipes.preferences import (
            MAY_DIFFER,
            WHY_NOT,
            read_preferences,
            run_description,
        )

        console = Console(highlight=False, markup=False, soft_wrap=True)
        preferences = read_preferences(self.data, seed=self.seed)
        description = run_description(self.config, self.data, preferences, base_url=self.base_url)
        with open_run(
            self.run_dir,
            self.recording,
            config=description,
            console=console,
            may_differ=MAY_DIFFER,
            reasons=WHY_NOT,
        ) as folder:
            console.print(f"Run folder: {self.run_dir}")
            latest = folder.checkpoints.latest()
            if latest is not None and latest.final:
                console.print("This run is finished. To train again, choose another --run-dir.")
                _print_results(console, folder, latest)
                return 0
            loaded = _prepare(self, preferences, console)
            if latest is None:
                _keep_pairs(self, loaded, folder)
            with engine(self.base_url, model=self.model.model, say=console.print) as address:
                console.print(f"Engine: {address.base_url}")
                run = _train(self, console=console, address=address, loaded=loaded, folder=folder)
                status = asyncio.run(run)
            report_run(folder.path, console)
            return status

    @property
    def config(self) -> DPOConfig:
        """What the loop is told."""
        return DPOConfig(
            model=self.model,
            preference=self.preference,
            schedule=self.schedule,
            adam=self.adam,
            cadence=self.cadence,
            seed=self.seed,
        )


def _prepare(command: DPO, preferences: "Preferences", console: "Console") -> "LoadedPreferences":
    """Finds the model's tokenizer and makes the preferences ready, saying what is done."""
    from cookbook_fx.renderers import get_renderer
    from shell.cli.options import warn_of_renderer
    from shell.hub import load_tokenizer, resolve_model
    from shell.hub.weights import context_length
    from shell.recipes.chat_sft import chosen_renderer
    from shell.recipes.preferences import account, prepare_preferences

    source = resolve_model(
        command.model.model, say=console.print, with_weights=command.base_url is None
    )
    console.print(f"Model: {source.name}, in {source.directory}")
    name = chosen_renderer(command.model)
    renderer = get_renderer(name, load_tokenizer(source.directory))
    warn_of_renderer(name, model=command.model.model, say=console.print)
    loaded = prepare_preferences(
        preferences,
        command.data,
        renderer=renderer,
        context_length=context_length(source.directory),
    )
    console.print(f"Training data: {account(loaded.train)}")
    if loaded.held_out is not None:
        console.print(f"Held-out data: {account(loaded.held_out)}")
    console.print(f"Reference: {command.config.reference}")
    return loaded


def _keep_pairs(command: DPO, loaded: "LoadedPreferences", folder: "RunFolder") -> None:
    """Keeps the first pairs that are trained on, to be looked at."""
    from cookbook_fx.reports import tokens_and_weights
    from cookbook_fx.reports.samples import ShownText
    from shell.training.beginnings import epoch_seed

    batch = loaded.data.train.get_batch(0, epoch_seed=epoch_seed(command.seed, 0))
    folder.samples.replace(
        [
            ShownText(
                title=f"Trained on: pair {number}" + (", a tie" if pair.is_tie else ""),
                heading=name,
                tokens=example.tokens,
                weights=sign * example.weights,
            )
            for number, pair in enumerate(batch.pairs[:_PAIRS], start=1)
            for name, datum, sign in (("chosen", pair.chosen, 1), ("rejected", pair.rejected, -1))
            for example in (tokens_and_weights(datum),)
        ]
    )


async def _train(
    command: DPO,
    *,
    console: "Console",
    address: "Address",
    loaded: "LoadedPreferences",
    folder: "RunFolder",
) -> int:
    """Trains, and says what came of it."""
    from shell.cli.interrupts import stop_on_signal
    from shell.cli.progress import Watcher
    from shell.clients import connect
    from shell.training.dpo import train_dpo

    message = "Stopping: finishing the step under way and saving. Ctrl-C again quits at once."
    with stop_on_signal(message=message) as stop:
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            with Watcher(console) as watcher:
                result = await train_dpo(
                    command.config,
                    service=service,
                    data=loaded.data,
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
    for prefix, what in (("", "Training"), ("test/", "Held-out")):
        measured = [row for row in rows if row.get(f"{prefix}accuracy") is not None]
        if measured:
            told = [
                f"{row[f'{prefix}accuracy']:.3f} after {row['step']} steps"
                for row in (measured[0], measured[-1])
                # A policy that still is its reference prefers nothing, which is no measurement.
                if abs(row[f"{prefix}margin"]) > _ROUNDING
            ]
            console.print(f"{what} accuracy: {', '.join(told) or 'nothing is preferred yet'}")
    console.print(f"Measurements: {folder.metrics.path}")
    console.print(f"Trained model: {final.sampler_path}")
    console.print(f'Ask it: cookbook-fx sample --checkpoint {final.sampler_path} "Who are you?"')
