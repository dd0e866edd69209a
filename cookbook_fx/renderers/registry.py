"""Chat formats by name."""

from collections.abc import Callable

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers.chatml import chatml
from cookbook_fx.renderers.deepseekv3 import (
    deepseekv3,
    deepseekv3_disable_thinking,
    deepseekv3_keep_thinking,
    deepseekv3_thinking,
)
from cookbook_fx.renderers.gpt_oss import (
    gpt_oss_high_reasoning,
    gpt_oss_low_reasoning,
    gpt_oss_medium_reasoning,
    gpt_oss_no_sysprompt,
)
from cookbook_fx.renderers.llama3 import llama3
from cookbook_fx.renderers.qwen3 import (
    qwen3,
    qwen3_disable_thinking,
    qwen3_instruct,
    qwen3_keep_thinking,
)
from cookbook_fx.renderers.renderer import Renderer
from cookbook_fx.renderers.role_colon import role_colon
from cookbook_fx.renderers.template import template
from cookbook_fx.tokens import Tokenizer


def get_renderer(name: str, tokenizer: Tokenizer) -> Renderer:
    """The renderer of this name for this tokenizer.

    Args:
        name: one of `RENDERERS`.
        tokenizer: a Hugging Face fast tokenizer.

    Raises:
        ConfigurationError: no renderer has this name, or it does not fit the tokenizer.
        ModelError: the tokenizer lacks a token the format needs.
    """
    if name not in RENDERERS:
        raise ConfigurationError(f"a renderer must be one of {', '.join(RENDERERS)}; got {name!r}")
    return RENDERERS[name](tokenizer)


RENDERERS: dict[str, Callable[[Tokenizer], Renderer]] = {
    "chatml": chatml,
    "deepseekv3": deepseekv3,
    "deepseekv3_disable_thinking": deepseekv3_disable_thinking,
    "deepseekv3_keep_thinking": deepseekv3_keep_thinking,
    "deepseekv3_thinking": deepseekv3_thinking,
    "gpt_oss_high_reasoning": gpt_oss_high_reasoning,
    "gpt_oss_low_reasoning": gpt_oss_low_reasoning,
    "gpt_oss_medium_reasoning": gpt_oss_medium_reasoning,
    "gpt_oss_no_sysprompt": gpt_oss_no_sysprompt,
    "llama3": llama3,
    "qwen3": qwen3,
    "qwen3_disable_thinking": qwen3_disable_thinking,
    "qwen3_instruct": qwen3_instruct,
    "qwen3_keep_thinking": qwen3_keep_thinking,
    "role_colon": role_colon,
    "template": template,
}
