"""Generation: many rows at once beside one by one, and beside stock transformers, on the same questions, in one process.

    python benchmarks/generate_speed.py [MODEL_DIR] [--questions FILE] [--out speed.json]

* *one by one*: this project, one row at a time.
* *batched*: the same, with `--batch-size` rows at once; replies must be the same.
* *stock, one by one* and *stock, batched*: `CodeGenForCausalLM.generate` with its key cache, the same sampling values, prompts padded on
  the left; a batch ends with its longest reply, as `generate` does.

Sides take turns; tokens are those written, control tokens included. Without a model, one of the tiny preset's size with random weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, CodeGenConfig

from moss_train.data.dialogue import read_dialogues
from moss_train.data.tokenizer import MossTokenizer
from moss_train.inference.decoder import Decoder, Task, Write, Written
from moss_train.inference.sampling import Sampling
from moss_train.model.codegen import init_model
from moss_train.model.loading import load_model

SAMPLING = Sampling()


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


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--questions", type=Path, help="dialogues, JSONL; by default the bundled ones")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.model or tiny(Path(scratch))
        tokenizer = MossTokenizer.load(directory)
        source = options.questions or resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"
        dialogues, _ = read_dialogues(str(source))
        texts = [f"{d.meta_instruction}<|Human|>:{d.turns[0].human}" for d in dialogues[: options.count]]
        prompts = [[*tokenizer.encode(text), tokenizer.eoh, *tokenizer.encode("\n<|MOSS|>:")] for text in texts]
        sides = Sides(directory, prompts, options.max_new_tokens, options.batch_size)
        ways: dict[str, Callable[[], int]] = {
            "one by one": lambda: sides.ours(1),
            "batched": lambda: sides.ours(options.batch_size),
            "stock, one by one": lambda: sides.theirs(1),
            "stock, batched": lambda: sides.theirs(options.batch_size),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
                started = time.perf_counter()
                tokens = ways[name]()
                rates[name].append(tokens / (time.perf_counter() - started))
    assert sides.replies[1] == sides.replies[options.batch_size], "the replies depend on the batch"
    lines = ["| side | tokens/s | beside one by one |", "|---|---|---|"]
    for name, found in rates.items():
        ratio = statistics.median(mine / base for mine, base in zip(found, rates["one by one"]))
        lines.append(f"| {name} | {statistics.median(found):,.0f} | {ratio:.2f} |")
    mean = sum(map(len, prompts)) / len(prompts)
    print(
        f"{len(prompts)} questions of {mean:.0f} tokens on average, up to {options.max_new_tokens} new ones, {options.batch_size} rows at "
        f"once, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print("\n".join(lines))
    if options.out:
        options.out.write_text(json.dumps({"rates": rates, "argv": sys.argv[1:]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
