"""`cookbook-fx eval`: measure a model or a checkpoint."""

import asyncio
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from cookbook_fx.errors import ConfigurationError
from shell.cli.options import BaseURL
from shell.recipes.evaluation.config import Answering, Tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from shell.cli.options import Address
    from shell.cli.target import Target
    from shell.evaluation import ExampleRecord
    from shell.recipes.evaluation.builders import TaskBuilder

_RESULTS = "results.json"


class _Measured(NamedTuple):
    """What was measured, and of what."""

    model: str
    renderer: str
    numbers: "Mapping[str, float | int]"


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model or a checkpoint: graded questions, likelihoods, environments, Inspect tasks.

    Prints a table and keeps the numbers and all answers in a folder. The same command again does
    not ask again what was answered, so that an interrupted evaluation continues.

    For example
    $ cookbook-fx eval --questions mine.jsonl --question-grader contains
    $ cookbook-fx eval runs/sft --nll heldout.jsonl --rl arithmetic
    $ cookbook-fx eval tinker://... --inspect task.py@capitals --limit 20
    $ cookbook-fx eval runs/rl --questions math.jsonl --question-grader math --show 3
    $ cookbook-fx eval runs/rl --questions mine.jsonl --num-samples 8 --temperature 1   (pass@k)
    $ cookbook-fx eval runs/rl --against runs/sft --judge shorter

    Args:
        target: what is measured: a known model's name (see `cookbook-fx models`), the id of a model
            on the Hugging Face hub, a directory, a .gguf file, a tinker:// path, the directory of a
            peft adapter, or the folder of a run. None is smollm2-135m-instruct.
        tasks: what it is measured on; --against may be whatever this may.
        answering: how answers are sampled.
        show: prints so many answers of each set of questions, below the numbers.
        model: the base model of a checkpoint or adapter, where it is not its own.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        renderer: how conversations are written for the model; None is what it was trained in, or
            what suits it best.
        out_dir: the folder of the results.
        concurrency: tasks at work at a time.
        seed: same seed, same answers.
    """

    target: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|CHECKPOINT|RUN")
    ] = None
    tasks: Tasks = field(default_factory=Tasks)
    answering: Answering = field(default_factory=Answering)
    model: str | None = None
    base_url: BaseURL = None
    renderer: str | None = None
    show: int = 0
    out_dir: Path = Path("runs/eval")
    concurrency: int = 4
    seed: int = 0

    def run(self) -> int:
        """Measures; prints and keeps the numbers."""
        from shell.cli.options import engine
        from shell.cli.target import find_target
        from shell.hub.models import say_on_standard_error
        from shell.recipes.evaluation.builders import TaskBuilder, chosen
        from shell.recipes.rl.workers import Workers

        if not chosen(self.tasks):
            raise ConfigurationError(
                "there is nothing to measure on; give --questions, --nll, --rl, --inspect or "
                "--against"
            )
        target = find_target(self.target, model=self.model, base_url=self.base_url)
        seen: list[tuple[str, ExampleRecord]] = []
        with (
            Workers() as workers,
            engine(self.base_url, model=target.model or "", say=say_on_standard_error) as address,
        ):
            builder = TaskBuilder(
                tasks=self._resolved_tasks(),
                answering=self.answering,
                workers=workers,
                folder=self.out_dir,
                weights=target.stamp,
                observe=lambda name, record: seen.append((name, record)),
            )
            measured = asyncio.run(self._measured(target, builder, address))
        self._keep(target, measured)
        self._print(target, measured.numbers)
        self._print_answers(seen)
        return 0

    def _resolved_tasks(self) -> Tasks:
        """The tasks, with what an engine knows the other model by."""
        from shell.cli.target import find_target

        other = self.tasks.against
        if other is None:
            return self.tasks
        found = find_target(other, model=self.model, base_url=self.base_url)
        return replace(self.tasks, against=found.name)

    async def _measured(
        self, target: "Target", builder: "TaskBuilder", address: "Address"
    ) -> "_Measured":
        from cookbook_fx.reports import flatten
        from shell.cli.target import opened
        from shell.evaluation import Evaluations

        async with opened(target, address=address, renderer=self.renderer) as (sampler, context):
            evaluations = Evaluations(
                evaluators=await builder(context), seed=self.seed, concurrency=self.concurrency
            )
            numbers = flatten(*await evaluations.of_sampler(sampler))
            return _Measured(context.model, context.renderer.name, numbers)

    def _print(self, target: "Target", numbers: "Mapping[str, float | int]") -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Column, Table

        table = Table(
            Column("measured", overflow="fold"), Column("value", justify="right"), box=SIMPLE_HEAD
        )
        for name, value in numbers.items():
            if not name.endswith("_stderr"):
                error = numbers.get(f"{name}_stderr")
                shown = f"{value:.6g}" if error is None else f"{value:.4f} ± {error:.4f}"
                table.add_row(name, shown)
        console = _console()
        console.print(target.name, soft_wrap=True)
        console.print(table)
        console.print(f"Kept in {self.out_dir / _RESULTS}", soft_wrap=True)

    def _print_answers(self, seen: "Sequence[tuple[str, ExampleRecord]]") -> None:
        """The first questions of each set, with what came of them."""
        from shell.cli.conversing import harmless

        console = _console()
        for name, record in sorted(seen, key=lambda pair: (pair[0], pair[1].example)):
            if record.example >= self.show:
                continue
            console.print(f"\n{name}, question {record.example + 1}", style="bold")
            for message in record.prompt:
                console.print(harmless(f"{message.role}: {message.text}"), soft_wrap=True)
            for answer in record.answers:
                scores = ", ".join(f"{key} {value:.4g}" for key, value in answer.scores.items())
                said = answer.message.text if answer.message is not None else ""
                console.print(f"[{answer.error or scores}]", style="dim", soft_wrap=True)
                console.print(harmless(said), soft_wrap=True)

    def _keep(self, target: "Target", measured: "_Measured") -> None:
        import json
        import math

        from shell.stores.files import storing, write_atomically

        kept = {
            "model": measured.model,
            "checkpoint": target.checkpoint,
            "renderer": measured.renderer,
            "engine": self.base_url or "embedded",
            "seed": self.seed,
            "tasks": asdict(self.tasks),
            "answering": asdict(self.answering),
            "results": {
                name: value if math.isfinite(value) else None
                for name, value in measured.numbers.items()
            },
        }
        text = json.dumps(kept, indent=2, default=str) + "\n"
        with storing(self.out_dir, what="the results"):
            self.out_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out_dir / _RESULTS, text, what="the results")


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False)
