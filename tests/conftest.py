"""What several tests share: a place for caches, a tiny model on disk, an engine that serves it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_VOCAB = 300

# How long an example takes says more about the machine, and what it compiles, than about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def caches_home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Models and compiled programs that outlive a test run; never the user's own home."""
    given = os.environ.get("COOKBOOK_FX_HOME")
    home = Path(given) if given else Path(request.config.cache.mkdir("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COOKBOOK_FX_HOME", str(home))
        patch.setenv("TINKER_TELEMETRY", "0")
        yield home


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Lets compiled programs go before they crash the process.

    Each holds about ten memory maps, and Linux grants a process 65,530: beyond them XLA dies of a
    segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a ChatML tokenizer, as a Hugging Face directory."""
    from safetensors.numpy import save_file

    from cookbook_fx.lm.config import config_from_hf
    from cookbook_fx.lm.weights import random_tensors

    directory = tmp_path_factory.mktemp("models") / "tiny-chat"
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": TINY_VOCAB, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    save_file(dict(random_tensors(config_from_hf(config))), directory / "model.safetensors")
    write_tiny_tokenizer(directory)
    return directory


def write_tiny_tokenizer(directory: Path) -> None:
    """A byte-level BPE of 300 tokens with SmolLM2's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        "the cat sat on the mat and the dog ran to the door",
        "system user assistant you are a helpful AI assistant",
        "what is the name of the other one here and there",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    assert tokenizer.get_vocab_size() == TINY_VOCAB
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "pad_token": "<|im_end|>",
                "unk_token": "<|endoftext|>",
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": False,
                "model_max_length": 512,
            }
        )
    )


@pytest.fixture(scope="session")
def smollm2_directory(caches_home: Path) -> Path:
    """The default model, fetched and converted on the first run (93 MB)."""
    from shell.hub.models import DEFAULT_MODEL, resolve_model

    return resolve_model(DEFAULT_MODEL).directory


@pytest.fixture(scope="session")
def tiny_engine(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The embedded engine serving the tiny model; the base model's name is its directory."""
    from shell.engine.serve import EngineConfig, embedded_engine

    config = EngineConfig(
        model=str(tiny_model_directory), state_dir=tmp_path_factory.mktemp("state")
    )
    with embedded_engine(config) as endpoint:
        yield endpoint
