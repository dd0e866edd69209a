"""Chat formats by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.names import added, named
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

RendererFactory = Callable[[Tokenizer], Renderer]

RENDERERS: Mapping[str, RendererFactory] = MappingProxyType(
    {
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
)


def get_renderer(
    name: str, tokenizer: Tokenizer, *, renderers: Mapping[str, RendererFactory] = RENDERERS
) -> Renderer:
    """The renderer of this name for this tokenizer.

    One's own renderer needs no registration: `package.module:factory` names it, on the command
    line (`--renderer`) and in any process that can import it.

    Args:
        name: one of `renderers`, or `package.module:factory`, a function of the tokenizer.
        tokenizer: a Hugging Face fast tokenizer.
        renderers: by name; `register_renderer` adds to them.

    Raises:
        ConfigurationError: no renderer has this name, or it does not fit the tokenizer.
        ModelError: the tokenizer lacks a token the format needs.
    """
    renderer = named(name, renderers, what="a renderer")(tokenizer)
    # What is imported by name may be anything.
    if not isinstance(renderer, Renderer):
        raise ConfigurationError(
            f"{name!r} should make a renderer of a tokenizer, and makes a {type(renderer).__name__}"
        )
    return renderer


def register_renderer(
    renderers: Mapping[str, RendererFactory], name: str, factory: RendererFactory
) -> dict[str, RendererFactory]:
    """The renderers with one more, to be given to `get_renderer`.

    Nothing is changed for anyone else: what is registered is in the result alone, and goes where
    that is handed. For a name that all processes know, see `get_renderer`.

    Raises:
        ConfigurationError: the name is taken, empty or has a colon.

    Example:
        >>> mine = register_renderer(RENDERERS, "my_llama", RENDERERS["llama3"])
        >>> "my_llama" in mine, "my_llama" in RENDERERS
        (True, False)
    """
    return added(renderers, name, factory, what="a renderer")
