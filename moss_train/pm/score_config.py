"""Settings of scoring."""

from __future__ import annotations

from dataclasses import dataclass

from moss_train.config import Attention, ExportDtype, OnBad

INPUTS = ("responses", "comparisons", "dialogues")


@dataclass
class ScoreConfig:
    """What `scripts/score.py` takes. Exactly one of `responses`, `comparisons` and `dialogues` is given; `FILE#N` takes the first N."""

    model: str = "???"
    """Preference model: the export of `scripts/pm.py`, or a checkpoint of it."""
    responses: str | None = None
    """Responses as `scripts/sample.py` writes them: every line comes out as it was, with a reward at each response."""
    comparisons: str | None = None
    """Comparisons in any layout: they come out as our own lines, with a reward at each response."""
    dialogues: str | None = None
    """Dialogues in any training layout: every reply gets a reward, with all that was said before it as its context."""
    out: str = "???"
    """File to write, JSONL: a line for each record. Until it is complete, what is there stands in `<out>.partial`."""
    batch_tokens: int = 16_384
    """Tokens at once, of several responses with their contexts. Rewards are the same with any number but for rounding."""
    seq_len: int | None = None
    """Most tokens of a response with its context; by default as many as the model has positions. The oldest turns of longer ones go."""
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` keeps that of `model`, or takes fp32 on a processor that cannot multiply it."""
    attention: Attention = Attention.auto
    on_bad: OnBad = OnBad.fail
    """What to do with bad records: tell them all and end, or leave them out."""
    max_bad_share: float = 0.01
    """With `skip`, the share of bad records above which it ends nevertheless."""
    unverified: bool = False
    """Take `model` although it is not what its lineage.json says."""
    allow_pickle: bool = False

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        given = [name for name in INPUTS if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"found {' and '.join(given)}" if given else "found none of them"
            found.append(f"exactly one of {', '.join(f'{name}=FILE' for name in INPUTS)} must be given; {told}")
        if not self.out.strip():
            found.append("out is empty; expected the name of a file, such as out=scored.jsonl")
        if self.batch_tokens < 1:
            found.append(f"batch_tokens is {self.batch_tokens}; expected 1 or more")
        if self.seq_len is not None and self.seq_len < 1:
            found.append(f"seq_len is {self.seq_len}; expected 1 or more")
        if not 0 <= self.max_bad_share <= 1:
            found.append(f"max_bad_share is {self.max_bad_share}; expected a share, from 0 to 1")
        return found

    @property
    def kind(self) -> str:
        """Which of `INPUTS` is given."""
        return next(name for name in INPUTS if getattr(self, name) is not None)

    @property
    def data(self) -> str:
        """What is scored."""
        return str(getattr(self, self.kind))
