"""Windows predict each token once, as the harness defines it; documents side by side know nothing of each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from moss_train.evaluate.likelihood import Window, rolling_windows, score_windows
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.speaker import Speaker
from tests.measured import TEXTS, export_random

POSITIONS = 48


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return Speaker(SpeakerConfig(model=str(export_random(tmp_path_factory.mktemp("model") / "export", POSITIONS))), 1)


@pytest.mark.parametrize(("length", "positions", "stride"), list(itertools.product((0, 1, 7, 8, 9, 16, 17, 40), (8,), (None, 1, 3, 8, 99))))
def test_each_token_is_predicted_once(length: int, positions: int, stride: int | None) -> None:
    ids = list(range(100, 100 + length))
    windows = list(rolling_windows(ids, 7, positions, stride))
    assert [id for window in windows for id in window.targets] == ids
    stream = [7, *ids]
    for window in windows:
        assert len(window.inputs) <= positions
        end = stream.index(window.targets[-1])
        # What is read ends where the last target begins, and nothing is read twice or left out in between.
        assert window.inputs == stream[end - len(window.inputs) : end]
    for window in windows[1:]:
        assert len(window.inputs) == positions
        assert len(window.targets) <= min(stride or positions, positions)


@pytest.mark.parametrize(("length", "stride"), list(itertools.product((1, 8, 9, 23, 64), (1, 5, 8))))
def test_the_windows_are_those_of_the_harness(length: int, stride: int) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-evaluation-harness is not installed (the extra eval)")
    ids = list(range(100, 100 + length))
    theirs = list(utils.get_rolling_token_windows(ids, prefix_token=7, max_seq_len=8, context_len=8 - stride + 1))
    ours = [(window.inputs, window.targets) for window in rolling_windows(ids, 7, 8, stride)]
    assert ours == theirs


def test_losses_are_those_of_each_window_alone(speaker: Speaker) -> None:
    windows = [
        window for text in TEXTS for window in rolling_windows(speaker.tokenizer.encode(text), speaker.tokenizer.endoftext, POSITIONS)
    ]
    windows.append(Window(windows[0].inputs, windows[0].targets[-2:]))
    assert len(windows) > len(TEXTS)
    together = list(score_windows(speaker, windows, 10_000))
    for window, losses in zip(windows, together, strict=True):
        with torch.inference_mode():
            logits = speaker.model(torch.tensor([window.inputs])).logits[0, -len(window.targets) :]
        expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(window.targets), reduction="none")
        assert np.allclose(losses.nats, expected.numpy(), atol=1e-4)
        assert losses.likeliest.tolist() == (logits.argmax(-1) == torch.tensor(window.targets)).tolist()


def test_the_batch_changes_nothing(speaker: Speaker) -> None:
    windows = [
        window for text in TEXTS for window in rolling_windows(speaker.tokenizer.encode(text), speaker.tokenizer.endoftext, POSITIONS)
    ]
    whole, single = list(score_windows(speaker, windows, 10_000)), list(score_windows(speaker, windows, 1))
    assert len(whole) == len(single) == len(windows)
    assert all(np.allclose(one.nats, other.nats, atol=1e-4) for one, other in zip(whole, single, strict=True))
    # Another document in the place of the first one: the rest stays, to the bit.
    other = [Window(windows[0].inputs[::-1], windows[0].targets), *windows[1:]]
    changed = list(score_windows(speaker, other, 10_000))
    assert not np.array_equal(changed[0].nats, whole[0].nats)
    assert all(np.array_equal(one.nats, two.nats) for one, two in zip(changed[1:], whole[1:], strict=True))
