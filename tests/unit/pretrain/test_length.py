"""A length in tokens as one in steps."""

from __future__ import annotations

import pytest

from moss_train.pretrain.config import CorpusDataConfig, PretrainConfig, PretrainTrainConfig
from moss_train.pretrain.main import in_steps
from moss_train.train.loop import Progress


@pytest.mark.parametrize(
    ("done", "global_batch_size", "steps"),
    [
        (None, 4, 40),
        (None, 7, 23),
        # Half of the run, then twice the batch: half as many steps for the other half.
        (Progress(step=20, samples=80), 8, 30),
        (Progress(step=25, samples=120), 8, 30),
        # The same batch: the steps are those of the whole run, wherever it goes on.
        (Progress(step=11, samples=77), 7, 23),
        (Progress(step=40, samples=160), 4, 40),
        (Progress(step=23, samples=161), 7, 23),
    ],
)
def test_the_length_in_tokens_holds_through_a_change_of_batch_size(done: Progress | None, global_batch_size: int, steps: int) -> None:
    train = PretrainTrainConfig(tokens=10_240, global_batch_size=global_batch_size)
    config = PretrainConfig(data=CorpusDataConfig(train="corpus", seq_len=64), train=train)
    assert in_steps(config, done).train.steps == steps
