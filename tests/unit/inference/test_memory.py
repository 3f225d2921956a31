"""The memory that is predicted is the memory that is taken."""

from __future__ import annotations

import torch
from transformers import CodeGenConfig

from moss_train.inference import memory
from moss_train.inference.decoder import Decoder, Task, Write, Written, rows_alike
from moss_train.inference.sampling import Sampling
from moss_train.model.codegen import init_model

MOSS_16B = CodeGenConfig(
    vocab_size=107008, n_positions=2048, n_ctx=2048, n_embd=6144, n_layer=34, n_head=24, rotary_dim=64, tie_word_embeddings=False
)


def test_sixteen_billion_parameters_fit_one_gpu_of_forty_gigabytes() -> None:
    """The published table has 81 GB for a dialogue of 2,048 tokens, and 31 for the weights alone."""
    found = memory.predict(MOSS_16B, torch.float16, slots=1)
    assert found.weights == 2 * 16_717_980_160
    assert found.cache == 2 * 34 * 6144 * 2048 * 2
    assert found.total < 36 * 1e9
    assert memory.predict(MOSS_16B, torch.float16, slots=8).total < 50 * 1e9


def test_weights_and_keys_are_counted_to_the_byte() -> None:
    config = CodeGenConfig(
        vocab_size=300, n_positions=512, n_ctx=512, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, tie_word_embeddings=False
    )
    model = init_model(config, 0, torch.float32).eval()
    # As many rows as products on this processor are made of, at least the four that are asked for.
    multiple = rows_alike(model) or 1
    predicted = memory.predict(config, torch.float32, slots=-(-4 // multiple) * multiple)
    assert sum(parameter.nbytes for parameter in model.parameters()) == predicted.weights

    def task() -> Task[Written]:
        return (yield Write([9] * 500, 8))

    decoder = Decoder(model, [0], [], Sampling(), 0, batch_size=4)
    decoder.one(task())
    assert decoder.cache.bytes == predicted.cache
    # One row takes the slots of the smallest product.
    alone = Decoder(model, [0], [], Sampling(), 0, batch_size=1)
    alone.one(task())
    assert alone.cache.bytes == memory.predict(config, torch.float32, slots=multiple).cache
    assert memory.available(torch.device("cpu")) > 2**28
