"""Learning rates to begin with, from a model's name and size.

Sources: the fits published with tinker-cookbook (its `hyperparam_utils`), and for the factor
between LoRA and full fine-tuning, Schulman et al., "LoRA Without Regret", 2025.
"""

import math

from cookbook_fx.catalog.models import CATALOG, Catalog, without_suffix
from cookbook_fx.catalog.shapes import ModelShapes, get_full_finetune_param_count
from cookbook_fx.errors import ConfigurationError

LORA_LR_OVER_FULL_FINETUNE_LR = 10.0
"""How many times higher the best learning rate of a LoRA is than that of full fine-tuning."""

_BASE_LR = 5e-5
_BASE_HIDDEN_SIZE = 2000
# How the best learning rate falls with the hidden size, for names that hold the word.
_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


def get_lr(
    name: str,
    *,
    is_lora: bool = True,
    hidden_size: int | None = None,
    catalog: Catalog = CATALOG,
) -> float:
    """A learning rate to begin with.

    lr = 5e-5 · (10 for a LoRA) · (2000 / hidden size)ᵉ, with e = 0.781 for Llama and 0.0775 for
    Qwen. Other families are not calibrated.

    Args:
        name: the model's; a `:suffix` is passed over.
        is_lora: whether a LoRA is trained, and not all weights.
        hidden_size: of a model that is not in the catalog (`get_hidden_size` of its shapes);
            None looks it up.
        catalog: where to look.

    Raises:
        ConfigurationError: the family is not calibrated, or the hidden size is not known.

    Example:
        >>> f"{get_lr('Qwen/Qwen3-8B'):.3e}"
        '4.730e-04'
        >>> f"{get_lr('me/llama-mini', hidden_size=512):.3e}"
        '1.449e-03'
    """
    full_name = catalog.full_name(name)
    matches = (exponent for word, exponent in _EXPONENTS.items() if word in full_name.lower())
    exponent = next(matches, None)
    if exponent is None:
        raise ConfigurationError(
            f"no learning rate is calibrated for {without_suffix(name)!r}, only for models named "
            f"{' or '.join(_EXPONENTS)}; choose one yourself, by a short run at each of a few"
        )
    width = _known_hidden_size(name, catalog) if hidden_size is None else hidden_size
    if width < 1:
        raise ConfigurationError(f"`hidden_size` must be at least 1, got {width}")
    factor = LORA_LR_OVER_FULL_FINETUNE_LR if is_lora else 1.0
    return _BASE_LR * factor * math.pow(_BASE_HIDDEN_SIZE / width, exponent)


def _known_hidden_size(name: str, catalog: Catalog) -> int:
    known = catalog.attributes(name).hidden_size
    if known is None:
        raise ConfigurationError(
            f"the catalog does not say how wide {without_suffix(name)!r} is; give `hidden_size`"
        )
    return known


def get_full_finetune_lr_multiplier(shapes: ModelShapes) -> float:
    """What a model's best learning rate for full fine-tuning goes with: 1 / √(parameters).

    Only ratios mean something: the best rate of model A, times this of B over this of A, is a
    guess at the best rate of B.

    Example:
        >>> get_full_finetune_lr_multiplier({"model.embed_tokens.weight": (25, 4)})
        0.1
    """
    return 1.0 / math.sqrt(get_full_finetune_param_count(shapes))


def get_lora_lr_multiplier(shapes: ModelShapes) -> float:
    """What a model's best learning rate for a LoRA goes with: ten times that for all weights.

    Only ratios mean something, as for `get_full_finetune_lr_multiplier`.

    Example:
        >>> get_lora_lr_multiplier({"model.embed_tokens.weight": (25, 4)})
        1.0
    """
    return LORA_LR_OVER_FULL_FINETUNE_LR * get_full_finetune_lr_multiplier(shapes)
