"""Training on preferences: from files and datasets to what the loop over pairs takes."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.preference import (
    LabeledComparison,
    PairPreparation,
    PreferenceDataset,
    PreferencePair,
    labeled_comparison_to_dict,
    prepare_pairs,
)
from cookbook_fx.renderers import Renderer
from shell.hub import canonical_name, load_comparisons
from shell.recipes.chat_sft import chosen_renderer, split_off
from shell.stores.run_folder import JSON
from shell.training import DPOConfig, PreferenceData
from shell.training.dpo import DPOData

# What two runs may differ in and still be the same run: neither changes the weights.
MAY_DIFFER = ("cadence", "data.data", "data.eval_data")
WHY_NOT = {"schedule.max_steps": "the learning rate of every step depends on how many there are"}

_SOURCE_FIELDS = ("data", "eval_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSources:
    """Where a run's preferences are; the starter set's where the user names none."""

    train: str
    held_out: str | None


class Preferences(NamedTuple):
    """Preferences as they were read, some of them held out."""

    train: tuple[LabeledComparison, ...]
    held_out: tuple[LabeledComparison, ...]


class LoadedPreferences(NamedTuple):
    """Pairs made ready, and an account of what became of the comparisons.

    Fields:
        data: for the loop.
        train: what became of the training comparisons.
        held_out: what became of the held-out ones; None if there are none.
    """

    data: DPOData
    train: PairPreparation
    held_out: PairPreparation | None


def preference_sources(choice: PreferenceData) -> PreferenceSources:
    """The files or datasets that a choice of data means.

    Raises:
        ConfigurationError: comparisons are to be held out and a held-out set is given.
    """
    if choice.test_size < 0:
        raise ConfigurationError(f"`test_size` must be 0 or more, got {choice.test_size}")
    if choice.test_size and choice.eval_data is not None:
        raise ConfigurationError(
            "give --eval-data or --test-size, not both: held-out comparisons come from a set of "
            "their own or from --data"
        )
    if choice.data is not None:
        return PreferenceSources(train=choice.data, held_out=choice.eval_data)
    starter = Path(str(resources.files("shell.recipes") / "starter_pairs"))
    held_out = None if choice.test_size else str(starter / "heldout.jsonl")
    return PreferenceSources(
        train=str(starter / "train.jsonl"), held_out=choice.eval_data or held_out
    )


def read_preferences(choice: PreferenceData, *, seed: int) -> Preferences:
    """Reads the comparisons of a run.

    Args:
        choice: which data.
        seed: decides which comparisons `test_size` holds out.

    Raises:
        DataError: a file or dataset is missing or damaged.
        ConfigurationError: a setting is out of range.
    """
    sources = preference_sources(choice)
    train = load_comparisons(sources.train)
    if choice.test_size:
        return Preferences(*split_off(train, choice.test_size, seed=seed))
    held_out = () if sources.held_out is None else load_comparisons(sources.held_out)
    return Preferences(train, held_out)


def prepare_preferences(
    preferences: Preferences,
    choice: PreferenceData,
    *,
    renderer: Renderer,
    context_length: int | None,
) -> LoadedPreferences:
    """Renders the comparisons of a run.

    Args:
        preferences: as read.
        choice: how they are cut into batches.
        renderer: how conversations are written for the model.
        context_length: tokens the model can read, if known; no conversation is left longer.

    Raises:
        DataError: there is nothing to train on or to measure.
        ConfigurationError: a setting is out of range.
    """
    limits = [limit for limit in (choice.max_length, context_length) if limit is not None]
    max_length = min(limits, default=None)
    train = prepare_pairs(
        preferences.train, renderer=renderer, max_length=max_length, ties=choice.ties
    )
    if not train.pairs:
        raise DataError(f"there is nothing to train on: {account(train.preparation)}")
    held_out: tuple[PreferencePair, ...] = ()
    became = None
    if preferences.held_out:
        # What is measured is whether a preference is told, and a tie is none.
        held_out, became = prepare_pairs(
            preferences.held_out, renderer=renderer, max_length=max_length
        )
        if not held_out:
            raise DataError(f"the held-out comparisons have nothing to measure: {account(became)}")
    data = DPOData(
        train=PreferenceDataset(pairs=train.pairs, batch_size=choice.batch_size),
        held_out=held_out,
        preparation=train.preparation,
    )
    return LoadedPreferences(data, train.preparation, became)


def account(preparation: PairPreparation) -> str:
    """What became of a set of comparisons, in words; nothing left out goes unsaid."""
    parts = [
        f"{preparation.comparisons} comparisons",
        f"{preparation.pairs} pairs of {preparation.tokens} tokens, "
        f"{preparation.loss_tokens} of them to learn from",
    ]
    notable = {
        "ties kept": preparation.ties,
        "lost an end because they are longer than the limit": preparation.truncated,
        "left out because neither completion was preferred": preparation.dropped_ties,
        "left out because both completions are the same": preparation.equal,
        "left out because the limit cut off a whole completion": preparation.cut_off,
        "left out because a completion has nothing to learn": preparation.nothing_to_train,
    }
    return "; ".join(parts + [f"{count} {what}" for what, count in notable.items() if count])


def run_description(
    config: DPOConfig, choice: PreferenceData, preferences: Preferences, *, base_url: str | None
) -> dict[str, JSON]:
    """Everything that decides the result of a run, for its `config.json`.

    The data is told by its content, so that a file that was edited makes another run and one that
    was moved does not. So is the reference, which no continuation can change.
    """
    sources = preference_sources(choice)
    named = {name: value for name, value in asdict(choice).items() if name not in _SOURCE_FIELDS}
    model = replace(
        config.model,
        model=canonical_name(config.model.model),
        renderer=chosen_renderer(config.model),
    )
    is_saved = config.reference.startswith("tinker://")
    reference = config.reference if is_saved else canonical_name(config.reference)
    return {
        "recipe": "preferences",
        "engine": base_url or "embedded",
        "seed": config.seed,
        "model": asdict(model),
        "preference": asdict(replace(config.preference, reference_model_name=reference)),
        "data": {
            "data": sources.train,
            "data_sha256": _digest(preferences.train),
            "eval_data": sources.held_out,
            "eval_data_sha256": _digest(preferences.held_out),
            **named,
        },
        "schedule": asdict(config.schedule),
        "adam": asdict(config.adam),
        "cadence": asdict(config.cadence),
    }


def _digest(comparisons: Iterable[LabeledComparison]) -> str:
    records = [labeled_comparison_to_dict(labeled) for labeled in comparisons]
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
