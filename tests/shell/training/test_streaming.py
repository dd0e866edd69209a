import json

import pytest

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.supervised import stream_batches
from shell.hub import load_tokenizer, open_dataset, stream_conversations
from shell.training.streaming import StreamedBatches


@pytest.fixture
def batches(tmp_path, tiny_model_directory, monkeypatch):
    """Makes batches of 3 of the 20 rows of a streamed Hugging Face dataset."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": f"answer {i}"},
            ]
        }
        for i in range(20)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    dataset = open_dataset(str(path), streaming=True)
    renderer = get_renderer("chatml", load_tokenizer(tiny_model_directory))

    def make(num_batches=7):
        return StreamedBatches(
            lambda seed: stream_batches(
                stream_conversations(dataset, epoch_seed=seed),
                renderer=renderer,
                batch_size=3,
                max_length=None,
            ),
            num_batches=num_batches,
        )

    return make


def tokens(batch):
    return [tuple(datum.tokens.tolist()) for datum in batch]


def test_a_batch_depends_on_index_and_seed_alone(batches):
    forwards = batches()
    in_order = [tokens(forwards.get_batch(i, epoch_seed=5)) for i in range(len(forwards))]
    assert [len(batch) for batch in in_order] == [3, 3, 3, 3, 3, 3, 2]
    assert len({row for batch in in_order for row in batch}) == 20
    assert forwards.read.conversations == 20
    jumping = batches()
    for index, seed in [(4, 5), (1, 8), (6, 5), (0, 5), (0, 5), (3, 5)]:
        batch = tokens(jumping.get_batch(index, epoch_seed=seed))
        assert (batch == in_order[index]) == (seed == 5)


def test_a_stream_that_ends_early_and_an_index_outside_are_told(batches):
    announced = batches(num_batches=9)
    with pytest.raises(DataError, match="ended after 7 batches, but 9 were announced"):
        announced.get_batch(8, epoch_seed=0)
    with pytest.raises(ConfigurationError, match="batches 0 to 8, got 9"):
        announced.get_batch(9, epoch_seed=0)
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        batches(num_batches=0)
