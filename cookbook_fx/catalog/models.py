"""Models by name: who made them, how large they are, and which renderers write their format."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.names import is_place


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAttributes:
    """What is known about a model.

    Args:
        organization: who published it, as in its hub id.
        version_str: the family's version, as "3.1".
        size_str: parameters, as "8B"; for experts all and the active ones, as "30B-A3B".
        is_chat: whether it was trained to chat; a base model was not.
        recommended_renderers: names of renderers that write its format, the default first.
        is_vl: whether it sees images.
        is_audio_in: whether it hears.
        hidden_size: width of the residual stream; None if not known.
    """

    organization: str
    version_str: str
    size_str: str
    is_chat: bool
    recommended_renderers: tuple[str, ...]
    is_vl: bool = False
    is_audio_in: bool = False
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        if not self.recommended_renderers:
            raise ConfigurationError(
                "`recommended_renderers` must name at least one renderer; "
                "role_colon fits every base model, template every tokenizer with a chat template"
            )
        if self.hidden_size is not None and self.hidden_size < 1:
            raise ConfigurationError(
                f"`hidden_size` must be at least 1, or None if unknown, got {self.hidden_size}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Models by their names; a value, so that adding one makes another catalog.

    Args:
        models: attributes by hub id, or by any other name a model is asked for by.
        aliases: short names, and the names in `models` that they stand for.

    Example:
        >>> mine = ModelAttributes(organization="me", version_str="1", size_str="1B",
        ...     is_chat=True, recommended_renderers=("chatml",))
        >>> catalog = CATALOG.with_model("me/mine-1b", mine)
        >>> get_recommended_renderer_name("me/mine-1b", catalog=catalog)
        'chatml'
        >>> "me/mine-1b" in CATALOG
        False
    """

    models: Mapping[str, ModelAttributes]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return self.full_name(name) in self.models

    def full_name(self, name: str) -> str:
        """The name without a suffix, and what it stands for if it is an alias."""
        base = without_suffix(name)
        return self.aliases.get(base, base)

    def attributes(self, name: str) -> ModelAttributes:
        """What is known about a model.

        Raises:
            ConfigurationError: nothing is known under this name; with the nearest known ones.
        """
        if name not in self:
            raise ConfigurationError(
                f"the catalog knows no model {without_suffix(name)!r}{self._near(name)}; "
                "Catalog.with_model adds one"
            )
        return self.models[self.full_name(name)]

    def with_model(self, name: str, attributes: ModelAttributes) -> "Catalog":
        """This catalog and one more model, or other attributes for one it has.

        Raises:
            ConfigurationError: the name has a `:suffix`, by which it could never be found.
        """
        if name != without_suffix(name):
            raise ConfigurationError(
                f"a model is added under its name without a suffix; "
                f"want {without_suffix(name)!r}, got {name!r}"
            )
        aliases = {alias: of for alias, of in self.aliases.items() if alias != name}
        return replace(self, models={**self.models, name: attributes}, aliases=aliases)

    def _near(self, name: str) -> str:
        spelled = {known.casefold(): known for known in (*self.models, *self.aliases)}
        # Those who leave out the organization are helped too.
        spelled |= {known.casefold().rpartition("/")[2]: known for known in self.models}
        near = get_close_matches(without_suffix(name).casefold(), spelled, n=6)
        names = dict.fromkeys(spelled[match] for match in near)
        return f"; near it are {', '.join(list(names)[:3])}" if names else ""


def without_suffix(name: str) -> str:
    """A model's name without the variant that some engines append.

    Example:
        >>> without_suffix("zai-org/GLM-5.3:peft:262144")
        'zai-org/GLM-5.3'
    """
    return name.split(":", 1)[0]


_ROLE_COLON = ("role_colon",)
_LLAMA3 = ("llama3",)
_QWEN3 = ("qwen3", "qwen3_disable_thinking", "qwen3_keep_thinking")
_QWEN3_INSTRUCT = ("qwen3_instruct",)
_DEEPSEEKV3 = (
    "deepseekv3",
    "deepseekv3_thinking",
    "deepseekv3_disable_thinking",
    "deepseekv3_keep_thinking",
)
_GPT_OSS = (
    "gpt_oss_no_sysprompt",
    "gpt_oss_medium_reasoning",
    "gpt_oss_low_reasoning",
    "gpt_oss_high_reasoning",
)
# Families whose format has no renderer of its own here: the tokenizer's chat template writes it.
_TEMPLATE = ("template",)


def _chat(
    name: str,
    version: str,
    size: str,
    renderers: tuple[str, ...],
    *,
    hidden_size: int,
    is_vl: bool = False,
    is_audio_in: bool = False,
) -> tuple[str, ModelAttributes]:
    return name, ModelAttributes(
        organization=name.partition("/")[0],
        version_str=version,
        size_str=size,
        is_chat=True,
        recommended_renderers=renderers,
        is_vl=is_vl,
        is_audio_in=is_audio_in,
        hidden_size=hidden_size,
    )


def _base(
    name: str, version: str, size: str, *, hidden_size: int, is_vl: bool = False
) -> tuple[str, ModelAttributes]:
    _, attributes = _chat(name, version, size, _ROLE_COLON, hidden_size=hidden_size, is_vl=is_vl)
    return name, replace(attributes, is_chat=False)


# Hidden sizes stand in each model's config.json.
CATALOG = Catalog(
    models=dict(
        [
            _chat("HuggingFaceTB/SmolLM2-135M-Instruct", "2", "135M", ("chatml",), hidden_size=576),
            _chat("HuggingFaceTB/SmolLM2-360M-Instruct", "2", "360M", ("chatml",), hidden_size=960),
            _chat(
                "HuggingFaceTB/SmolLM2-1.7B-Instruct", "2", "1.7B", ("chatml",), hidden_size=2048
            ),
            _base("HuggingFaceTB/SmolLM2-135M", "2", "135M", hidden_size=576),
            _base("HuggingFaceTB/SmolLM2-360M", "2", "360M", hidden_size=960),
            _base("HuggingFaceTB/SmolLM2-1.7B", "2", "1.7B", hidden_size=2048),
            _base("meta-llama/Llama-3.2-1B", "3.2", "1B", hidden_size=2048),
            _base("meta-llama/Llama-3.2-3B", "3.2", "3B", hidden_size=3072),
            _base("meta-llama/Llama-3.1-8B", "3.1", "8B", hidden_size=4096),
            _base("meta-llama/Llama-3.1-70B", "3.1", "70B", hidden_size=8192),
            _chat("meta-llama/Llama-3.2-1B-Instruct", "3.2", "1B", _LLAMA3, hidden_size=2048),
            _chat("meta-llama/Llama-3.2-3B-Instruct", "3.2", "3B", _LLAMA3, hidden_size=3072),
            _chat("meta-llama/Llama-3.1-8B-Instruct", "3.1", "8B", _LLAMA3, hidden_size=4096),
            _chat("meta-llama/Llama-3.1-70B-Instruct", "3.1", "70B", _LLAMA3, hidden_size=8192),
            _chat("meta-llama/Llama-3.3-70B-Instruct", "3.3", "70B", _LLAMA3, hidden_size=8192),
            _base("Qwen/Qwen3-0.6B-Base", "3", "0.6B", hidden_size=1024),
            _base("Qwen/Qwen3-1.7B-Base", "3", "1.7B", hidden_size=2048),
            _base("Qwen/Qwen3-4B-Base", "3", "4B", hidden_size=2560),
            _base("Qwen/Qwen3-8B-Base", "3", "8B", hidden_size=4096),
            _base("Qwen/Qwen3-14B-Base", "3", "14B", hidden_size=5120),
            _base("Qwen/Qwen3-30B-A3B-Base", "3", "30B-A3B", hidden_size=2048),
            _chat("Qwen/Qwen3-0.6B", "3", "0.6B", _QWEN3, hidden_size=1024),
            _chat("Qwen/Qwen3-1.7B", "3", "1.7B", _QWEN3, hidden_size=2048),
            _chat("Qwen/Qwen3-4B", "3", "4B", _QWEN3, hidden_size=2560),
            _chat("Qwen/Qwen3-8B", "3", "8B", _QWEN3, hidden_size=4096),
            _chat("Qwen/Qwen3-14B", "3", "14B", _QWEN3, hidden_size=5120),
            _chat("Qwen/Qwen3-32B", "3", "32B", _QWEN3, hidden_size=5120),
            _chat("Qwen/Qwen3-30B-A3B", "3", "30B-A3B", _QWEN3, hidden_size=2048),
            _chat("Qwen/Qwen3-4B-Instruct-2507", "3", "4B", _QWEN3_INSTRUCT, hidden_size=2560),
            _chat(
                "Qwen/Qwen3-30B-A3B-Instruct-2507",
                "3",
                "30B-A3B",
                _QWEN3_INSTRUCT,
                hidden_size=2048,
            ),
            _chat(
                "Qwen/Qwen3-235B-A22B-Instruct-2507",
                "3",
                "235B-A22B",
                _QWEN3_INSTRUCT,
                hidden_size=4096,
            ),
            _chat(
                "Qwen/Qwen3-VL-30B-A3B-Instruct",
                "3",
                "30B-A3B",
                _TEMPLATE,
                hidden_size=2048,
                is_vl=True,
            ),
            _chat(
                "Qwen/Qwen3-VL-235B-A22B-Instruct",
                "3",
                "235B-A22B",
                _TEMPLATE,
                hidden_size=4096,
                is_vl=True,
            ),
            _chat("Qwen/Qwen3.5-4B", "3.5", "4B", _TEMPLATE, hidden_size=2560, is_vl=True),
            _chat("Qwen/Qwen3.5-9B", "3.5", "9B", _TEMPLATE, hidden_size=4096, is_vl=True),
            _base("Qwen/Qwen3.5-9B-Base", "3.5", "9B", hidden_size=4096, is_vl=True),
            _chat("Qwen/Qwen3.5-27B", "3.5", "27B", _TEMPLATE, hidden_size=5120, is_vl=True),
            _chat(
                "Qwen/Qwen3.5-35B-A3B", "3.5", "35B-A3B", _TEMPLATE, hidden_size=2048, is_vl=True
            ),
            _base("Qwen/Qwen3.5-35B-A3B-Base", "3.5", "35B-A3B", hidden_size=2048, is_vl=True),
            _chat(
                "Qwen/Qwen3.5-397B-A17B",
                "3.5",
                "397B-A17B",
                _TEMPLATE,
                hidden_size=4096,
                is_vl=True,
            ),
            _chat("Qwen/Qwen3.6-27B", "3.6", "27B", _TEMPLATE, hidden_size=5120, is_vl=True),
            _chat(
                "Qwen/Qwen3.6-35B-A3B", "3.6", "35B-A3B", _TEMPLATE, hidden_size=2048, is_vl=True
            ),
            _chat("Qwen/Qwen3.8-27B", "3.8", "27B", _TEMPLATE, hidden_size=5120, is_vl=True),
            _chat("deepseek-ai/DeepSeek-V3.1", "3", "671B-A37B", _DEEPSEEKV3, hidden_size=7168),
            _base("deepseek-ai/DeepSeek-V3.1-Base", "3", "671B-A37B", hidden_size=7168),
            _chat(
                "deepseek-ai/DeepSeek-V4.1-Flash", "4.1", "552B-A16B", _TEMPLATE, hidden_size=5120
            ),
            _chat(
                "deepseek-ai/DeepSeek-V4.1-Flash-1017",
                "4.1",
                "552B-A16B",
                _TEMPLATE,
                hidden_size=5120,
            ),
            _chat("openai/gpt-oss-20b", "1", "21B-A3.6B", _GPT_OSS, hidden_size=2880),
            _chat("openai/gpt-oss-120b", "1", "117B-A5.1B", _GPT_OSS, hidden_size=2880),
            _chat("moonshotai/Kimi-K2-Thinking", "K2", "1T-A32B", _TEMPLATE, hidden_size=7168),
            _chat(
                "moonshotai/Kimi-K2.5", "K2.5", "1T-A32B", _TEMPLATE, hidden_size=7168, is_vl=True
            ),
            _chat(
                "moonshotai/Kimi-K2.6", "K2.6", "1T-A32B", _TEMPLATE, hidden_size=7168, is_vl=True
            ),
            _chat("zai-org/GLM-5.3", "5.3", "744B-A40B", _TEMPLATE, hidden_size=6144),
            _chat("zai-org/GLM-5.3-Flash", "5.3", "320B-A18B", _TEMPLATE, hidden_size=4096),
            _chat(
                "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
                "3",
                "30B-A3B",
                _TEMPLATE,
                hidden_size=2688,
            ),
            _chat(
                "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
                "3",
                "120B-A12B",
                _TEMPLATE,
                hidden_size=4096,
            ),
            _chat(
                "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
                "3",
                "550B-A55B",
                _TEMPLATE,
                hidden_size=8192,
            ),
            _chat(
                "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16",
                "3.5",
                "30B-A3B",
                _TEMPLATE,
                hidden_size=2688,
            ),
            _chat(
                "nvidia/NVIDIA-Nemotron-3.5-Super-VL-120B-A12B-BF16",
                "3.5",
                "120B-A12B",
                _TEMPLATE,
                hidden_size=4096,
                is_vl=True,
            ),
            _chat(
                "thinkingmachines/Inkling",
                "1",
                "975B-A41B",
                _TEMPLATE,
                hidden_size=6144,
                is_vl=True,
                is_audio_in=True,
            ),
            _chat(
                "thinkingmachines/Inkling-Small",
                "1",
                "276B-A12B",
                _TEMPLATE,
                hidden_size=4096,
                is_vl=True,
                is_audio_in=True,
            ),
        ]
    ),
    aliases={"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"},
)


def get_model_attributes(name: str, *, catalog: Catalog = CATALOG) -> ModelAttributes:
    """What is known about a model.

    Args:
        name: its id on the Hugging Face hub or a short name; a `:suffix` is passed over.
        catalog: where to look.

    Raises:
        ConfigurationError: nothing is known under this name; with the nearest known ones.

    Example:
        >>> get_model_attributes("Qwen/Qwen3-30B-A3B:peft").size_str
        '30B-A3B'
    """
    return catalog.attributes(name)


def get_recommended_renderer_names(name: str, *, catalog: Catalog = CATALOG) -> tuple[str, ...]:
    """The renderers that write a model's format, the default first.

    `template` means that the model's tokenizer has to bring the format, as its chat template.

    Raises:
        ConfigurationError: nothing is known under this name; with the nearest known ones.
    """
    return catalog.attributes(name).recommended_renderers


def get_recommended_renderer_name(name: str, *, catalog: Catalog = CATALOG) -> str:
    """The renderer to use for a model unless there is a reason for another.

    Raises:
        ConfigurationError: nothing is known under this name; with the nearest known ones.

    Example:
        >>> get_recommended_renderer_name("meta-llama/Llama-3.1-8B")
        'role_colon'
    """
    return get_recommended_renderer_names(name, catalog=catalog)[0]


def renderer_warning(name: str, renderer: str, *, catalog: Catalog = CATALOG) -> str | None:
    """Why a renderer may be wrong for a model, in a sentence.

    Args:
        name: the model's.
        renderer: the renderer's.
        catalog: where to look.

    Returns:
        None if the renderer is recommended, or nothing is known about the model, or a chat
        model's own template is used, or a renderer of the caller's own.

    Example:
        >>> renderer_warning("Qwen/Qwen3-8B", "llama3")
        'the renderer llama3 is not made for Qwen/Qwen3-8B, which then reads and writes text \
unlike what it was trained on; made for it: qwen3, qwen3_disable_thinking, qwen3_keep_thinking'
    """
    if name not in catalog:
        return None
    attributes = catalog.attributes(name)
    is_own_template = attributes.is_chat and renderer == "template"
    if is_own_template or is_place(renderer) or renderer in attributes.recommended_renderers:
        return None
    return (
        f"the renderer {renderer} is not made for {name}, which then reads and writes text unlike "
        f"what it was trained on; made for it: {', '.join(attributes.recommended_renderers)}"
    )
