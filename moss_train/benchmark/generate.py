"""The suite `generate`: many rows at once beside one by one, and beside stock transformers, on the same questions.

* *ours, one by one*: this project, one row at a time.
* *ours, batched*: the same, many rows at once; replies must be the same.
* *stock, one by one* and *stock, batched*: `CodeGenForCausalLM.generate` with its key cache, the same sampling values, prompts padded on
  the left; a batch ends with its longest reply, as `generate` does.

Tokens are those written, control tokens included. The model is one of the tiny preset's size with random weights.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, CodeGenConfig

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import in_turns, spread
from moss_train.data.dialogue import read_dialogues
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError
from moss_train.inference.decoder import Decoder, Task, Write, Written
from moss_train.inference.sampling import Sampling
from moss_train.model.codegen import init_model
from moss_train.model.loading import load_model

SAMPLING = Sampling()
_COUNT, _BATCH_SIZE, _NEW_TOKENS = 64, 32, 64


def tiny(folder: Path) -> Path:
    """A model of the tiny preset's size."""
    bundled = resources.files("moss_train.data.bundled") / "dialogues_train.jsonl"
    dialogues, _ = read_dialogues(str(bundled))
    tokenizer = MossTokenizer.train((turn.moss or "" for dialogue in dialogues for turn in dialogue.turns), 2048)
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=2048, n_ctx=2048, n_embd=128, n_layer=2, n_head=4, rotary_dim=16, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    model = init_model(config, 0, torch.float32)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def reply(prompt: list[int], tokens: int) -> Task[Written]:
    """One reply."""
    return (yield Write(prompt, tokens))


class Sides:
    """The four ways, each a call that writes replies to all prompts and gives the tokens written."""

    def __init__(self, directory: Path, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int):
        self.tokenizer = MossTokenizer.load(directory)
        self.model = load_model(directory, torch.float32).eval()
        self.stock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.prompts, self.max_new_tokens, self.batch_size = prompts, max_new_tokens, batch_size
        self.replies: dict[int, dict[int, Written]] = {}
        self.stops = [*self.tokenizer.control_ids.values(), self.tokenizer.endoftext]

    def ours(self, batch_size: int) -> int:
        """This project, so many rows at once."""
        forbidden = self.tokenizer.special_ids | set(range(self.tokenizer.size, self.model.config.vocab_size))
        decoder = Decoder(self.model, self.stops, forbidden, SAMPLING, 0, batch_size)
        found = dict(decoder.run((number, reply(prompt, self.max_new_tokens)) for number, prompt in enumerate(self.prompts)))
        self.replies[batch_size] = found
        return decoder.tokens

    def theirs(self, batch_size: int) -> int:
        """Stock transformers, so many rows at once."""
        torch.manual_seed(0)
        pad, written = self.tokenizer.endoftext, 0
        for start in range(0, len(self.prompts), batch_size):
            chosen = self.prompts[start : start + batch_size]
            longest = max(map(len, chosen))
            ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in chosen])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in chosen])
            with torch.inference_mode():
                out = self.stock.generate(
                    ids, attention_mask=mask, do_sample=True, temperature=SAMPLING.temperature, top_p=SAMPLING.top_p, top_k=SAMPLING.top_k,
                    repetition_penalty=SAMPLING.repetition_penalty, max_new_tokens=self.max_new_tokens, eos_token_id=self.stops,
                    pad_token_id=pad, use_cache=True, suppress_tokens=self.tokenizer.tag_ids,
                )[:, longest:].tolist()  # fmt: skip
            for row in out:
                ends = [place for place, token in enumerate(row) if token in self.stops]
                written += ends[0] + 1 if ends else len(row)
        return written


def questions(tokenizer: MossTokenizer, data: str | None, count: int) -> list[list[int]]:
    """The first turns of dialogues, as prompts."""
    dialogues, _ = read_dialogues(data or str(resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"))
    texts = [f"{one.meta_instruction}<|Human|>:{one.turns[0].human}" for one in dialogues[:count]]
    return [[*tokenizer.encode(text), tokenizer.eoh, *tokenizer.encode("\n<|MOSS|>:")] for text in texts]


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Tokens a second of the four ways, in turns."""
    if device != "cpu":
        raise UsageError("suite=generate runs on the CPU so far; give device=cpu")
    settings = {"questions": _COUNT, "batch_size": _BATCH_SIZE, "max_new_tokens": _NEW_TOKENS, "model": "tiny, random weights, float32"}
    outcome = Outcome("generate", "tokens/s", "stock, batched", settings=settings)
    with tempfile.TemporaryDirectory() as scratch:
        directory = tiny(Path(scratch))
        tokenizer = MossTokenizer.load(directory)
        sides = Sides(directory, questions(tokenizer, config.data, _COUNT), _NEW_TOKENS, _BATCH_SIZE)
        written: dict[str, int] = {}
        ways = {
            "stock, batched": lambda: sides.theirs(_BATCH_SIZE),
            "stock, one by one": lambda: sides.theirs(1),
            "ours, one by one": lambda: sides.ours(1),
            "ours, batched": lambda: sides.ours(_BATCH_SIZE),
        }

        def counted(name: str) -> Callable[[], None]:
            def write() -> None:
                written[name] = ways[name]()

            return write

        timed = in_turns({name: counted(name) for name in ways}, config.rounds)
    if sides.replies[1] != sides.replies[_BATCH_SIZE]:
        raise AssertionError("the replies depend on the batch")
    rates = {name: [written[name] / seconds for seconds in timed.seconds[name]] for name in ways}
    for name, found in rates.items():
        # Sides do not write the same number of tokens: rates, not seconds, are compared, within each round.
        ratio = spread([own / theirs for own, theirs in zip(found, rates["stock, batched"])])
        outcome.rows.append(
            Row("", name, statistics.median(found), None if name == "stock, batched" else ratio, ours=name.startswith("ours"))
        )
    return outcome
