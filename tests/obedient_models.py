"""A model that provably obeys its tags, and a preference model that provably sees it, both set by hand.

One block whose attention weighs all tokens before alike (queries are zero) and hands on the mean of their embeddings. Embeddings are zero
but for the tag of level n, which is 1 in dimension n, and the words: so the state before the reply says which tag there was, whatever else
was said. The output makes the n-th word likely of it; after a word comes the end, then a newline. Without a tag all words are as likely.
The preference model's block is the same, with the n-th word in dimension n, and its head is n there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CodeGenConfig

from moss_train.artifacts.export import write_export
from moss_train.artifacts.lineage import Lineage, Parent
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import CodeGenLM, init_model
from moss_train.model.pm import CodeGenPM, pm_config

WORDS = ("v", "w", "z")
"""What the model says under the levels 1, 2 and 3. No prompt may hold these letters."""
QUESTIONS = ["Hi", "Can you help me?", "Pick one of these", "你好", "Be kind, please", "Tell me a lot"]
_WIDTH, _BLOCKS = 64, 4
_WORD = len(WORDS)
"""The dimension that says that a word was written."""
_END = len(WORDS) + 1
"""The dimension that says that the reply has ended: what follows is a newline."""
_NEVER = -40.0


def made_tokenizer() -> MossTokenizer:
    """Of which each word is one token."""
    return MossTokenizer.train(QUESTIONS, 300, reserved_tags=8)


def obedient_model(tokenizer: MossTokenizer, strength: float = 0.5) -> CodeGenLM:
    """A language model.

    Args:
        tokenizer: As `made_tokenizer` gives it.
        strength: Of the tag. 0.5: the level's word comes 96 times in 100; 0: the tag says nothing.
    """
    model: CodeGenLM = init_model(_config(tokenizer), 0, torch.float32)
    with torch.no_grad():
        _pass_on_the_mean(model)
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(_NEVER)
        for level, word in enumerate(WORDS):
            (token,) = tokenizer.encode(word)
            model.transformer.wte.weight[tokenizer.tag_of(level + 1), level] = 1
            model.transformer.wte.weight[token, _WORD] = 1
            model.lm_head.weight[token, level] = strength
            model.lm_head.bias[token] = 0
            # After a word nothing but the end, and nothing but a newline after that.
            model.lm_head.weight[token, _WORD] = model.lm_head.weight[token, _END] = _NEVER
        model.lm_head.weight[tokenizer.eom, _WORD] = -_NEVER
        model.transformer.wte.weight[tokenizer.eom, _END] = 1
        model.lm_head.weight[tokenizer.newline, _END] = -_NEVER
    return model.eval()


def export_obedient(out: Path, strength: float = 0.5, levels: dict[str, int] | None = None, parents: list[Parent] | None = None) -> Path:
    """Its export, with a record that names the levels."""
    tokenizer = made_tokenizer()
    model = obedient_model(tokenizer, strength)
    details = {"levels": {"1": 5, "2": 5, "3": 5} if levels is None else levels}
    record = Lineage("export", "preference", parents or [], details=details)
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_export(out, parameters, model.config, "fp32", record, tokenizer=tokenizer, max_shard_bytes=10**9)
    return out


def save_seeing_pm(folder: Path, scale: float = 1.0) -> Path:
    """A preference model whose reward is larger for a later word; `scale` times as large, which makes it another model."""
    tokenizer = made_tokenizer()
    model: CodeGenPM = init_model(pm_config(_config(tokenizer)), 0, torch.float32, CodeGenPM)
    with torch.no_grad():
        _pass_on_the_mean(model)
        model.score.weight.zero_()
        for level, word in enumerate(WORDS):
            (token,) = tokenizer.encode(word)
            model.transformer.wte.weight[token, level] = 1
            model.score.weight[0, level] = scale * (level + 1)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def _config(tokenizer: MossTokenizer) -> CodeGenConfig:
    return CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=128, n_ctx=128, n_embd=_WIDTH, n_layer=1, n_head=_BLOCKS, rotary_dim=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def _pass_on_the_mean(model: Any) -> None:
    """Embeddings of zero, and a block that adds the mean of the normalised embeddings so far."""
    block = model.transformer.h[0]
    model.transformer.wte.weight.zero_()
    for parameter in (block.attn.qkv_proj.weight, block.mlp.fc_out.weight, block.mlp.fc_out.bias):
        parameter.zero_()
    # Rows lie in four blocks, each ordered query, value, key.
    size = _WIDTH // _BLOCKS
    for part in range(_BLOCKS):
        for place in range(size):
            block.attn.qkv_proj.weight[3 * size * part + size + place, size * part + place] = 1
    block.attn.out_proj.weight.copy_(torch.eye(_WIDTH))
