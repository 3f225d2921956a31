"""What a larger vocabulary does to texts: shorter or not, the same ids or not, exact or not, and bits per byte before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from moss_train.data.extend import Extension
from moss_train.data.pieces import SCRIPTS
from moss_train.data.tokenizer import MossTokenizer

if TYPE_CHECKING:
    import torch

    from moss_train.model.codegen import CodeGenLM

EXAMPLES = 5
CONTEXT = 12
"""Characters shown on each side of a place where ids changed."""


@dataclass
class TextReport:
    """One set of texts under both vocabularies.

    Attributes:
        documents, bytes: How much there is.
        tokens_before, tokens_after: Ids, nothing added at either end.
        changed: Documents whose ids are not the old ones under the map of ids.
        changed_elsewhere: Those of them that hold no character of the script that tokens were learned for.
        inexact: Documents that decoding does not give back, under either vocabulary.
        examples: Some places where ids changed: the text there, as it was cut before and after.
        bits_per_byte: Of the model, by `before` and by strategy; missing where there is no model.
    """

    documents: int = 0
    bytes: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    changed: int = 0
    changed_elsewhere: int = 0
    inexact: int = 0
    examples: list[str] = field(default_factory=list)
    bits_per_byte: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """How many times fewer tokens a byte takes."""
        return self.tokens_before / max(1, self.tokens_after)

    def as_json(self) -> dict[str, Any]:
        """Numbers by name."""
        return {
            **asdict(self),
            "bytes_per_token_before": _rate(self.bytes, self.tokens_before),
            "bytes_per_token_after": _rate(self.bytes, self.tokens_after),
        }


def report_on(texts: Sequence[str], base: MossTokenizer, extension: Extension, scripts: str) -> TextReport:
    """Tokenizes texts with both vocabularies and compares.

    Args:
        texts: Texts. base, extension: The vocabularies.
        scripts: What tokens were learned for, a name of `SCRIPTS`.
    """
    script = SCRIPTS[scripts]
    report = TextReport()
    new_ids, new = extension.new_ids, extension.tokenizer
    for begin in range(0, len(texts), 256):
        part = texts[begin : begin + 256]
        for text, before, after in zip(part, base.encode_batch(part), new.encode_batch(part)):
            report.documents += 1
            report.bytes += len(text.encode())
            report.tokens_before += len(before)
            report.tokens_after += len(after)
            report.inexact += base.decode(before) != text or new.decode(after) != text
            if new_ids[before].tolist() != after:
                report.changed += 1
                report.changed_elsewhere += script is not None and script.search(text) is None
                if len(report.examples) < EXAMPLES:
                    report.examples.append(_first_change(before, after, base, new, new_ids[before].tolist()))
    return report


def _first_change(before: list[int], after: list[int], base: MossTokenizer, new: MossTokenizer, mapped: list[int]) -> str:
    """The first place where the cuts differ, as `old|cuts -> new|cuts`."""
    first = next((index for index, pair in enumerate(zip(mapped, after)) if pair[0] != pair[1]), min(len(mapped), len(after)))
    old_parts, new_parts = [base.token_bytes(token) for token in before[first:]], [new.token_bytes(token) for token in after[first:]]
    old_end = new_end = 0
    old_count = new_count = 0
    # Both spell the same bytes: go on until the two meet again.
    while old_count < len(old_parts) or new_count < len(new_parts):
        if old_end <= new_end and old_count < len(old_parts):
            old_end += len(old_parts[old_count])
            old_count += 1
        else:
            new_end += len(new_parts[new_count])
            new_count += 1
        if old_end == new_end and old_count and new_count:
            break
    lead = base.decode(before[max(0, first - CONTEXT) : first])[-CONTEXT:]
    return f"{lead!r} + {_spell(old_parts[:old_count])} -> {_spell(new_parts[:new_count])}"


def _spell(parts: Sequence[bytes]) -> str:
    return "|".join(part.decode("utf-8", "backslashreplace") for part in parts)


def _rate(amount: float, count: float) -> float | None:
    return round(amount / count, 4) if count else None


def bits_per_byte(model: CodeGenLM, tokenizer: MossTokenizer, texts: Sequence[str], device: torch.device) -> float:
    """Mean of the bits that the model needs for a byte of the texts.

    The sum over tokens of -log2 p(token | those before it in its text), over the bytes of UTF-8. Every text follows `<|endoftext|>`; one
    that is longer than the model's context is cut into windows, each of which begins with the last token of the one before.
    """
    import torch

    span, nats, count = model.config.n_positions, 0.0, 0
    with torch.inference_mode():
        for text, ids in zip(texts, tokenizer.encode_batch(texts)):
            count += len(text.encode())
            stream = [tokenizer.endoftext, *ids]
            for begin in range(0, len(ids), span):
                window = torch.tensor([stream[begin : begin + span + 1]], device=device)
                out = model(window[:, :-1], targets=window[:, 1:].clone())
                nats += float(out.loss_sum)
    return nats / math.log(2) / max(1, count)


def print_reports(reports: dict[str, TextReport], report: dict[str, Any]) -> None:
    """Prints the tables of a job.

    Args:
        reports: By name of the held-out texts. report: What `extension.json` says of the vocabulary.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{report['learned']:,} new tokens; {report['tokens_before']:,} -> {report['tokens_after']:,} ids in use, "
        f"{report['rows_before']:,} -> {report['rows_after']:,} rows"
    )
    if not reports:
        console.print("no held-out text was given (heldout={zh: PATH, en: PATH, code: PATH}), so nothing was measured")
        return
    table = Table(title="held-out text: bytes per token, and documents whose tokens changed", title_justify="left")
    for heading in ("text", "documents", "before", "after", "ratio", "changed", "without CJK"):
        table.add_column(heading, justify="left" if heading == "text" else "right")
    for name, found in reports.items():
        table.add_row(
            name,
            f"{found.documents:,}",
            f"{found.bytes / max(1, found.tokens_before):.3f}",
            f"{found.bytes / max(1, found.tokens_after):.3f}",
            f"{found.gain:.2f}",
            f"{found.changed:,} ({found.changed / max(1, found.documents):.1%})",
            f"{found.changed_elsewhere:,}",
        )
    console.print(table)
    console.print("every text decodes to itself under both vocabularies")
    keys = list(dict.fromkeys(key for found in reports.values() for key in found.bits_per_byte))
    if keys:
        bits = Table(title="bits per byte: before, and right after by how the new rows are made", title_justify="left")
        for heading in ("text", *keys):
            bits.add_column(heading, justify="left" if heading == "text" else "right")
        for name, found in reports.items():
            bits.add_row(name, *(f"{found.bits_per_byte[key]:.3f}" if key in found.bits_per_byte else "-" for key in keys))
        console.print(bits)
    for name, found in reports.items():
        # Where nearly everything changes, it was meant to.
        for example in found.examples[:3] if found.changed <= found.documents / 2 else []:
            console.print(f"{name}, changed: {example}", markup=False, soft_wrap=True)
