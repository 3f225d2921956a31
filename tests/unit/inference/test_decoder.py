"""Rows written together are those written alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.inference.decoder import Decoder, Task, Write, Written, rows_alike
from moss_train.inference.sampling import Sampling
from moss_train.model.codegen import CodeGenLM, init_model, set_attention

STOPS = (7, 8)
FORBIDDEN = (0, 1, 2)


@pytest.fixture(scope="module")
def model() -> CodeGenLM:
    config = CodeGenConfig(
        vocab_size=211, n_positions=96, n_ctx=96, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, initializer_range=0.3,
    )  # fmt: skip
    return init_model(config, 0, torch.float32).eval()


def prompts(count: int) -> list[list[int]]:
    """Of different lengths."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(9, 211, (3 + 7 * (n % 6),), generator=generator).tolist() for n in range(count)]


def reply(prompt: list[int], tokens: int = 30) -> Task[Written]:
    """One write."""
    return (yield Write(prompt, tokens))


def turn(prompt: list[int]) -> Task[list[list[int]]]:
    """Three writes, the second after the first, the third with another beginning."""
    first = yield Write(prompt, 12, "first")
    second = yield Write([*prompt, *first.ids, 20, 21], 9, "second")
    third = yield Write([*prompt[: len(prompt) // 2], 30, *second.ids, 31], 9, "third")
    return [first.ids, second.ids, third.ids]


def decoder(model: CodeGenLM, batch_size: int, sampling: Sampling | None = None) -> Decoder:
    return Decoder(model, STOPS, FORBIDDEN, sampling or Sampling(temperature=1.0, top_p=0.95), 11, batch_size)


def test_greedy_ids_are_those_of_transformers(model: CodeGenLM) -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=1.1)
    set_attention(model, "sdpa")
    for number, prompt in enumerate(prompts(6)):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=30, eos_token_id=list(STOPS), pad_token_id=0, repetition_penalty=1.1,
            suppress_tokens=list(FORBIDDEN),
        )[0, len(prompt) :].tolist()  # fmt: skip
        written = decoder(model, 1, sampling).one(reply(prompt), number)
        assert [*written.ids, *([written.stop] if written.stop is not None else [])] == expected


@pytest.mark.parametrize("task", [reply, turn])
def test_neither_batch_size_nor_order_nor_threads_change_a_row(model: CodeGenLM, task: type) -> None:
    all_prompts = prompts(13)
    alone = {number: decoder(model, 1).one(task(prompt), number) for number, prompt in enumerate(all_prompts)}
    assert len({str(result) for result in alone.values()}) > 8
    threads = torch.get_num_threads()
    for batch_size, backwards, used in ((2, False, 1), (5, True, 2), (64, True, 1)):
        numbered = list(enumerate(all_prompts))
        try:
            torch.set_num_threads(used)
            together = decoder(model, batch_size)
            found = dict(together.run((number, task(prompt)) for number, prompt in (numbered[::-1] if backwards else numbered)))
        finally:
            torch.set_num_threads(threads)
        assert together.exact
        assert found == alone, (batch_size, backwards, used)


def test_rows_that_are_read_together_in_larger_pieces_say_the_same(model: CodeGenLM) -> None:
    """Where bits may depend on the rows beside, more is read at once: the likeliest tokens stay what they are."""
    greedy = Sampling(temperature=0.0)
    all_prompts = prompts(40)
    alone = {number: decoder(model, 1, greedy).one(turn(prompt), number) for number, prompt in enumerate(all_prompts)}
    together = decoder(model, 40, greedy)
    together.exact = False
    assert dict(together.run((number, turn(prompt)) for number, prompt in enumerate(all_prompts))) == alone


def test_finished_rows_make_room_at_once(model: CodeGenLM) -> None:
    """No task is begun before a slot is free, and none waits while one is."""
    begun, ended = [], []

    def tasks() -> Iterator[tuple[int, Task[Written]]]:
        for number, prompt in enumerate(prompts(9)):
            begun.append((number, len(ended)))
            yield number, reply(prompt, 5 + 10 * (number % 3))

    for number, _ in decoder(model, 3).run(tasks()):
        ended.append(number)
    assert sorted(ended) == list(range(9))
    assert ended != list(range(9))
    assert all(number - done <= 3 for number, done in begun)


def test_only_what_is_new_is_read(model: CodeGenLM) -> None:
    one = decoder(model, 1)
    prompt = prompts(6)[5]
    first, second, _ = one.one(turn(prompt))
    # The second prompt begins with all the first write left in the cache, but for its last id, which was not read yet where no stop
    # came after it. The third shares the first half.
    unread = len(first) == 12
    assert one.prompt_tokens == len(prompt) + (unread + 2) + (1 + len(second) + 1)


def test_what_is_written(model: CodeGenLM) -> None:
    one = decoder(model, 1)
    seen: list[tuple[int, int]] = []
    one.on_token = lambda number, token: seen.append((number, token))
    written = one.one(reply(prompts(3)[2], 10), 4)
    assert [token for _, token in seen] == written.ids
    assert {number for number, _ in seen} <= {4}
    assert len(written.ids) <= 10
    assert set(written.ids).isdisjoint({*FORBIDDEN, *STOPS})
    assert written.log_probability < 0
    assert len(decoder(model, 1).one(reply(prompts(3)[2], 1)).ids) <= 1


def test_a_row_may_fill_all_positions(model: CodeGenLM) -> None:
    prompt = prompts(6)[5]
    written = decoder(model, 2, Sampling(temperature=1.0, top_k=0, top_p=1.0)).one(reply(prompt, 96 - len(prompt)))
    assert written.stop is not None or len(written.ids) == 96 - len(prompt)
    long = (prompt * 3)[:95]
    assert len(decoder(model, 1).one(reply(long, 1)).ids) <= 1


def test_the_number_of_rows_that_are_alike(model: CodeGenLM) -> None:
    multiple = rows_alike(model)
    assert multiple in (4, 8, 16, 32)


@pytest.mark.parametrize("task", [reply, turn])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_shared_prompt_is_read_once_and_changes_no_bit(model: CodeGenLM, task: type, batch_size: int) -> None:
    """Rows of one prompt, in slots that come free at different times, are what they are when each reads it anew."""
    samples = 5
    numbered = [(number * samples + one, prompt) for number, prompt in enumerate(prompts(4)) for one in range(samples)]
    anew = decoder(model, batch_size)
    expected = dict(anew.run((number, task(prompt)) for number, prompt in numbered))
    shared = Decoder(model, STOPS, FORBIDDEN, anew.sampling, anew.seed, batch_size, share_prompts=True)
    assert dict(shared.run((number, task(prompt)) for number, prompt in numbered)) == expected
    assert len({str(result) for result in expected.values()}) > 15
    saved = sum((samples - 1) * len(prompt) for prompt in prompts(4))
    assert anew.prompt_tokens - shared.prompt_tokens == saved
