"""A DPO step here and in tinker-cookbook, on the same embedded engine, side by side.

    python -m benchmarks.dpo [--model NAME] [--batches 4] [--epochs 2] [--batch-size 8]
        [--cores 2] [--repeats 2]

Both train the same LoRA (rank 32, Adam, beta 0.1) on the preferences that come with the library,
in the same batches, through the Tinker SDK, on one engine in this process, taking turns. The peer's
step is its own `do_update`: the reference's log-probabilities by a sampler, a torch loss, and one
request after the other. Ours is `train_dpo` as a user runs it, its files included; its later epochs
know the reference already. Evaluations and checkpoints are left out on both sides. Before times are
printed the losses of the first epoch are compared. Where the machine is busy believe the ratio of
processor time, which is that of whole runs: the engine's work and setting up the clients included.

Needs the extra `peers` and tinker-cookbook, to be installed as benchmarks/rl_batches.py says.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing

# Both sides sum in float32, and losses are of the size of 0.1 to 1.
_TOLERANCE = 2e-3


def main() -> None:
    arguments = _arguments()
    timing.settle(arguments.cores)
    # The peer uses the SDK as it was a version ago.
    warnings.simplefilter("ignore", FutureWarning)
    from shell.engine.serve import EngineConfig, embedded_engine

    dataset = _dataset(arguments)
    with tempfile.TemporaryDirectory() as state:
        config = EngineConfig(model=arguments.model, state_dir=Path(state))
        with embedded_engine(config) as endpoint:
            for repeat in range(1 + arguments.repeats):
                mine, ours = timing.timed(_ours, arguments, dataset, endpoint)
                peer, theirs = timing.timed(_theirs, arguments, dataset, endpoint)
                # Later losses drift apart as rounding does.
                np.testing.assert_allclose(
                    [row["dpo_loss"] for row in ours[: arguments.batches]],
                    [row["dpo_loss"] for row in theirs[: arguments.batches]],
                    atol=_TOLERANCE,
                )
                if repeat > 0:  # the first turn compiles
                    _print_turn(arguments, ours, theirs)
                    print(
                        f"processor: ours {mine.processor:6.2f} s, peer {peer.processor:6.2f} s, "
                        f"ratio {mine.processor / peer.processor:.2f}",
                        flush=True,
                    )


def _print_turn(arguments: argparse.Namespace, ours: list[dict], theirs: list[dict]) -> None:
    for epoch in range(arguments.epochs):
        here = slice(epoch * arguments.batches, (epoch + 1) * arguments.batches)
        mine, peers = (
            statistics.median(row["time/total"] for row in rows[here]) for rows in (ours, theirs)
        )
        print(f"epoch {epoch}: ours {mine:6.2f} s, peer {peers:6.2f} s, ratio {mine / peers:.2f}")
    mine, peers = (sum(row["time/total"] for row in rows) for rows in (ours, theirs))
    print(
        f"all steps: ours {mine:6.2f} s, peer {peers:6.2f} s, ratio {mine / peers:.2f}", flush=True
    )


def _dataset(arguments: argparse.Namespace) -> Any:
    from cookbook_fx.preference import PreferenceDataset, prepare_pairs
    from cookbook_fx.renderers import get_renderer
    from shell.hub import load_tokenizer, resolve_model
    from shell.recipes.preferences import read_preferences
    from shell.training import PreferenceData

    tokenizer = load_tokenizer(resolve_model(arguments.model, say=print).directory)
    comparisons = read_preferences(PreferenceData(), seed=0).train
    wanted = comparisons[: arguments.batches * arguments.batch_size]
    renderer = get_renderer("chatml", tokenizer)
    pairs = prepare_pairs(wanted, renderer=renderer, max_length=512).pairs
    return PreferenceDataset(pairs=pairs, batch_size=arguments.batch_size)


def _ours(arguments: argparse.Namespace, dataset: Any, endpoint: Any) -> list[dict]:
    """The rows of a run, without that of its end."""
    from shell.clients import connect
    from shell.stores import open_run_folder
    from shell.training import Cadence, DPOConfig, ModelChoice, Schedule
    from shell.training.dpo import DPOData, train_dpo

    config = DPOConfig(
        model=ModelChoice(model=arguments.model),
        schedule=Schedule(learning_rate=1e-5, lr_schedule="constant", num_epochs=arguments.epochs),
        cadence=Cadence(eval_every=None, save_every=None),
    )

    async def run(folder: Any) -> None:
        async with connect(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
            await train_dpo(config, service=service, data=DPOData(train=dataset), folder=folder)

    with tempfile.TemporaryDirectory() as path:
        with open_run_folder(Path(path) / "run", config={}) as folder:
            asyncio.run(run(folder))
        lines = (Path(path) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:-1]]


class _Batches:
    """Our batches in our order, as the peer asks for them."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def get_batch(self, index: int) -> Sequence[Any]:
        from shell.clients.convert import to_sdk_data
        from shell.training.beginnings import epoch_seed

        batch = self._dataset.get_batch(index, epoch_seed=epoch_seed(0, self._epoch))
        return to_sdk_data(batch.datums)


def _theirs(arguments: argparse.Namespace, dataset: Any, endpoint: Any) -> list[dict]:
    """The metrics of as many steps of the peer's, with their seconds."""
    import tinker
    from tinker_cookbook.preference import train_dpo
    from tinker_cookbook.utils import ml_log

    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as path:
        config = train_dpo.Config(
            log_path=path,
            model_name=arguments.model,
            recipe_name="benchmark",
            dataset_builder=None,
            learning_rate=1e-5,
            lr_schedule="constant",
            eval_every=0,
            infrequent_eval_every=0,
        )
        logger = ml_log.setup_logging(log_dir=path, do_configure_logging_module=False)
        log, logger.log_metrics = logger.log_metrics, None

        def log_metrics(metrics: dict, step: int) -> None:
            rows.append(dict(metrics))
            log(metrics=metrics, step=step)

        logger.log_metrics = log_metrics
        service = tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key)
        trainer, reference = train_dpo.create_dpo_clients(config, service)
        batches = _Batches(dataset)
        for step in range(arguments.batches * arguments.epochs):
            epoch, index = divmod(step, arguments.batches)
            batches.set_epoch(epoch)
            began = time.perf_counter()
            # Step 0 prints examples; one of another number does not.
            train_dpo.do_update(
                epoch_idx=epoch + 1,
                batch_idx=index,
                n_batches=arguments.batches,
                total_steps=1 + arguments.batches * (arguments.epochs + 1),
                config=config,
                training_client=trainer,
                reference_client=reference,
                evaluators=[],
                infrequent_evaluators=[],
                dataset=batches,
                ml_logger=logger,
                log_path=path,
                tokenizer=None,
            )
            rows[-1]["time/total"] = time.perf_counter() - began
        logger.close()
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
