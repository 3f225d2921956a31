"""The README.md of an export, from its lineage."""

from __future__ import annotations

import json
from typing import Any

from moss_train.artifacts.lineage import Lineage

_TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags: [codegen, moss, dialogue]
---
# {name}

A CodeGen model ({parameters}, {layers} layers, hidden size {hidden}, {vocab} embedding rows), {made}.
`lineage.json` beside this file names its parents, its data, the configuration it was trained with, and the hash of every file.

{results}
## Prompt

Text before the first turn, then turns; each message ends with its terminator and a newline:

```
{prompt}
```

The model answers up to `<eom>`. A model trained with plugins writes `<|Inner Thoughts|>: ...<eot>` and `<|Commands|>: ...<eoc>` before
its reply.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
prompt = tokenizer({prompt_literal}, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt)[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


# What stands before a reply that needs no tool, in data that has these segments in every turn.
MIDDLE = "<|Inner Thoughts|>: None<eot>\n<|Commands|>: None<eoc>\n<|Results|>: None<eor>\n"


def render(name: str, model_config: Any, record: Lineage) -> str:
    """The card of the export called `name`."""
    count = record.details.get("parameters")
    parents = ", ".join(f"{parent.name} ({parent.role})" for parent in record.parents)
    made = f"made by the stage `{record.stage}`" + (f" from {parents}" if parents else " from random weights")
    if record.tokens_seen:
        made += f" on {record.tokens_seen:,} tokens, {record.supervised_tokens:,} of them with loss"
    middle = MIDDLE if record.details.get("middle_segments") else ""
    prompt = f"{record.details.get('meta_instruction') or ''}<|Human|>: Hello<eoh>\n{middle}<|MOSS|>:"
    rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in record.metrics.items())
    results = f"| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    return _TEMPLATE.format(
        name=name,
        prompt=prompt,
        prompt_literal=json.dumps(prompt, ensure_ascii=False),
        parameters=f"{count:,} parameters" if count else "size not recorded",
        layers=model_config.n_layer,
        hidden=model_config.n_embd,
        vocab=model_config.vocab_size,
        made=made,
        results=results,
    )
