"""The README.md of an export, from its lineage."""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

from moss_train.artifacts.lineage import UNKNOWN_LICENCE, Lineage, licences_of
from moss_train.artifacts.lineage_mapping import huggingface
from moss_train.model.shapes import LM, count_parameters, head_of

_TEMPLATE = """\
---
{front}---
# {name}

A {family} model of {parameters:,} parameters: {layers} layers, hidden size {hidden}, {heads} heads, {vocab:,} embedding rows,
{positions:,} positions. Weights are in {dtype}. {made}

`lineage.json` beside this file names its parents, its data, the configuration it was trained with, and the sha256 of every file.

{data}{results}## Prompt

{prompting}

## Use

{use}

## Licences

{licences}
"""

# What stands before a reply that needs no tool, in data that has these segments in every turn.
MIDDLE = "<|Inner Thoughts|>: None<eot>\n<|Commands|>: None<eoc>\n<|Results|>: None<eor>\n"
_DIALOGUE = """\
Text before the first turn, then turns; each message ends with its terminator and a newline:

```
{prompt}
```

The model answers up to `<eom>`.{plugins}"""
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
prompt = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt)[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

No remote code is needed. Sampling values are in `generation_config.json`."""
_REWARDED = """\
It gives a response one number, its reward, at the `<eom>` that ends it: of two responses the one with the larger reward is the better one.
Only differences of rewards mean anything{scale}. It writes no text. Text before the first turn, then turns:

```
{response}
```"""
_USE_PM = {
    "codegen": """\
```bash
python scripts/score.py model={name} responses=responses.jsonl out=scored.jsonl    # or comparisons=, dialogues=
python scripts/evaluate.py suite=pm model={name} data=comparisons.jsonl out=evaluation
```""",
    "gptj": """\
```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
print(model(**tokenizer({response}, return_tensors="pt")).logits[0, 0])  # up to <eom>, and nothing behind it
```

No remote code is needed. `scripts/score.py` reads the directory that this one was rewritten from.""",
}
_TEXT = "It continues text, and has not learned to hold a dialogue. A document ends with `<|endoftext|>`."
_FAMILIES = {"codegen": "CodeGen", "gptj": "GPT-J (rewritten from CodeGen, the same function)"}


def render(name: str, model_config: Any, record: Lineage) -> str:
    """The card of the export called `name`.

    Args:
        name: Last part of its path.
        model_config: The model's `CodeGenConfig`.
        record: Its lineage, as far as it is known before it is written.
    """
    layout = record.details.get("layout", "codegen")
    is_pm = head_of(model_config) != LM
    task, tag = ("text-classification", "preference-model") if is_pm else ("text-generation", "dialogue")
    front = {"library_name": "transformers", "pipeline_tag": task, "tags": [layout, "moss", tag], **huggingface(record)}
    middle = MIDDLE if record.details.get("middle_segments") else ""
    holds_dialogues = record.stage != "extend_vocab" or "loss_on" in record.details
    prompt = f"{record.details.get('meta_instruction') or ''}<|Human|>: Hello<eoh>\n{middle}<|MOSS|>:" if holds_dialogues else "def main():"
    plugins = (
        " Where it uses a tool, it writes `<|Inner Thoughts|>: ...<eot>` and `<|Commands|>: ...<eoc>` before its reply, and reads"
        " `<|Results|>: ...<eor>`."
        if middle
        else ""
    )
    prompting = _DIALOGUE.format(prompt=prompt, plugins=plugins) if holds_dialogues else _TEXT
    use = _USE.format(name=name, prompt=json.dumps(prompt, ensure_ascii=False))
    if is_pm:
        response, temperature = f"{prompt} Hello! How can I help you?<eom>", record.details.get("temperature")
        scale = f": divided by {temperature:.4g}, they are the logit of how likely that is" if temperature else ""
        prompting = _REWARDED.format(response=response, scale=scale)
        use = _USE_PM[layout].format(name=name, response=json.dumps(response, ensure_ascii=False))
    if record.kind == "variant":
        needed = {"gptq": "gptqmodel optimum", "torchao": "torchao"}.get(str(record.details.get("scheme")), "moss-train[quant]")
        use = f"Stock transformers reads it where `pip install {needed}` was done; this project's programs need nothing more.\n\n{use}"
    return _TEMPLATE.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        name=name,
        family=_FAMILIES[layout],
        parameters=count_parameters(model_config),
        layers=model_config.n_layer,
        hidden=model_config.n_embd,
        heads=model_config.n_head,
        vocab=model_config.vocab_size,
        positions=model_config.n_positions,
        dtype=_weights(record),
        made=_made(record),
        data=_data(record),
        results=_results(record),
        prompting=prompting,
        use=use,
        licences=_licences(record),
    )


def _made(record: Lineage) -> str:
    """How it was made, in a sentence or two."""
    bases = [parent.name for parent in record.parents if parent.role == "init"]
    others = [f"{parent.name} ({parent.role})" for parent in record.parents if parent.role != "init"]
    rewritten = record.details.get("rewritten_from")
    is_variant = record.kind == "variant"
    sentence = f"It is {rewritten}, {'quantised' if is_variant else 'rewritten'}. " if rewritten else ""
    if record.stage == "import":
        return sentence + "How that was made is not recorded."
    if record.stage == "extend_vocab":
        details, base = record.details, ", ".join(bases)
        sentence = f"It is {base} with {details['new_tokens']:,} more tokens; their rows were made by `{details['method']}`"
        trained = f"for {details['warmup_steps']} steps only these were trained" if details["warmup_steps"] else "nothing was trained"
        return f"{sentence}, and {trained} since then."
    # What a variant's source began with is for its own card to say.
    begun = "" if is_variant else f", from {', '.join(bases) if bases else 'random weights'}"
    sentence += f"It was trained by the stage `{record.stage}`{begun}"
    if record.tokens_seen:
        sentence += f", on {record.tokens_seen:,} tokens, {record.supervised_tokens:,} of them with loss"
        if record.details.get("loss_on"):
            sentence += f" (`{record.details['loss_on']}`)"
        if record.flops:
            sentence += f", {record.flops:.2e} FLOPs"
    return sentence + (f". Its other parents: {', '.join(others)}." if others and not is_variant else ".")


def _data(record: Lineage) -> str:
    if not record.data:
        return ""
    rows = "\n".join(
        f"| {source.name} | {source.role} | {source.records:,} | {source.licence or UNKNOWN_LICENCE} | `{source.sha256[:12]}` |"
        for source in record.data
    )
    return f"## Data\n\n| name | for | records | licence | sha256 |\n|---|---|---|---|---|\n{rows}\n\n"


def _results(record: Lineage) -> str:
    finite = {metric: value for metric, value in record.metrics.items() if math.isfinite(value)}
    if not finite:
        return ""
    rows = "\n".join(f"| {metric} | {_figure(value)} |" for metric, value in finite.items())
    return f"## Metrics\n\n| metric | value |\n|---|---|\n{rows}\n\n"


def _figure(value: float) -> str:
    """A divergence is small, and its size is what counts."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def _weights(record: Lineage) -> str:
    """What the weights are stored in."""
    plain = record.number_format or "the number format of config.json"
    if record.kind != "variant":
        return plain
    group = f", groups of {record.details['group_size']}" if record.details.get("group_size") else ", a scale for each row"
    return f"{record.details['bits']} bits ({record.details['scheme']}{group}) but for embeddings, norms and head, which are in {plain}"


def _licences(record: Lineage) -> str:
    found = record.licences or licences_of(record)
    if not found:
        return "None is stated by what this model was made from."
    lines = [f"- {licence}: {', '.join(names)}" for licence, names in found.items()]
    head = "Of the data and the models it was made from; what holds for this model is for whoever publishes it to settle:"
    return "\n".join([head, "", *lines])
