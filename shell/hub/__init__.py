"""What is downloaded or read: models, tokenizers, data. Names load when they are first used.

Each needs another heavy library, and a program that only wants a folder's name should not wait for
all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shell.hub.home import home as home

if TYPE_CHECKING:
    from shell.hub.comparisons import ComparisonBuilderFromDataset as ComparisonBuilderFromDataset
    from shell.hub.comparisons import ComparisonBuilderFromJsonl as ComparisonBuilderFromJsonl
    from shell.hub.comparisons import ComparisonDatasetBuilder as ComparisonDatasetBuilder
    from shell.hub.comparisons import load_comparisons as load_comparisons
    from shell.hub.conversations import read_conversations as read_conversations
    from shell.hub.datasets import conversations_from_dataset as conversations_from_dataset
    from shell.hub.datasets import open_dataset as open_dataset
    from shell.hub.datasets import stream_conversations as stream_conversations
    from shell.hub.known import KnownModel as KnownModel
    from shell.hub.known import known_models as known_models
    from shell.hub.models import DEFAULT_MODEL as DEFAULT_MODEL
    from shell.hub.models import ModelSource as ModelSource
    from shell.hub.models import canonical_name as canonical_name
    from shell.hub.models import recommended_renderer as recommended_renderer
    from shell.hub.models import resolve_model as resolve_model
    from shell.hub.prompts import load_prompts as load_prompts
    from shell.hub.shapes import read_shapes as read_shapes
    from shell.hub.tokenizers import NO_TOKENIZERS as NO_TOKENIZERS
    from shell.hub.tokenizers import TokenizerFactory as TokenizerFactory
    from shell.hub.tokenizers import end_tokens as end_tokens
    from shell.hub.tokenizers import get_tokenizer as get_tokenizer
    from shell.hub.tokenizers import load_tokenizer as load_tokenizer
    from shell.hub.tokenizers import register_tokenizer as register_tokenizer
    from shell.hub.weights import load_weights as load_weights

_FILE_OF = {
    "ComparisonBuilderFromDataset": "comparisons",
    "ComparisonBuilderFromJsonl": "comparisons",
    "ComparisonDatasetBuilder": "comparisons",
    "DEFAULT_MODEL": "models",
    "KnownModel": "known",
    "ModelSource": "models",
    "NO_TOKENIZERS": "tokenizers",
    "TokenizerFactory": "tokenizers",
    "canonical_name": "models",
    "conversations_from_dataset": "datasets",
    "end_tokens": "tokenizers",
    "get_tokenizer": "tokenizers",
    "known_models": "known",
    "load_comparisons": "comparisons",
    "load_prompts": "prompts",
    "load_tokenizer": "tokenizers",
    "load_weights": "weights",
    "open_dataset": "datasets",
    "read_conversations": "conversations",
    "read_shapes": "shapes",
    "recommended_renderer": "models",
    "register_tokenizer": "tokenizers",
    "resolve_model": "models",
    "stream_conversations": "datasets",
}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module 'shell.hub' has no attribute {name!r}")
    return getattr(import_module(f"shell.hub.{_FILE_OF[name]}"), name)
