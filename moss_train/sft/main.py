"""Supervised fine-tuning: dialogues -> rows -> the loop -> an export. Serves preference-aware training too, which differs in its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train.sft.config import PlanSFTConfig, SFTConfig, VerifySFTConfig

SFT, PREFERENCE = "sft", "preference"

if TYPE_CHECKING:
    from moss_train.sft.data import Rows
    from moss_train.sft.inputs import Input
    from moss_train.train.run import Run


def main(config: SFTConfig, stage: str = SFT) -> float:
    """Runs one fine-tuning job.

    Args:
        config: Its settings.
        stage: `sft`, or `preference`: the same on replies that have levels, and refused where none has one.

    Returns:
        The final validation loss per supervised token (the training loss where there is no validation data): what a sweep minimises.
    """
    from moss_train.artifacts.export import write_export
    from moss_train.data.loader import StepPlan
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.sft.data import open_rows, parents_of_rows, render_inputs
    from moss_train.sft.inputs import Input, find_inputs, open_cache
    from moss_train.train import engine as distributed
    from moss_train.train.auto import settle
    from moss_train.train.resume import find_checkpoint
    from moss_train.train.run import open_run
    from moss_train.train.stage import train_stage
    from moss_train.train.start import architecture, build, fit_vocabulary, verify_start

    with open_run(config, stage) as run:
        # What can be refused without reading data is refused first.
        StepPlan(config.train.global_batch_size, config.train.micro_batch_size, distributed.world_size())
        distributed.check_section(config.deepspeed)
        saved = find_checkpoint(run)
        run.once_per_machine("what the run starts from", lambda: verify_start(config, open_cache(config.data), run.log))
        model_config = run.together(lambda: architecture(config, config.data.seq_len, run.log))
        found = run.once_per_machine("the data files", lambda: [asdict(one) for one in find_inputs(config.data)])
        inputs = [Input(**one) for one in found]
        trained = run.once_per_machine("the tokenizer", lambda: tokenizer_directory(config, inputs, run.log))
        tokenizer = run.together(lambda: MossTokenizer.load(trained))
        model_config = run.together(lambda: fit_vocabulary(config, model_config, tokenizer))
        entries = run.once_per_machine("the data to be rendered", lambda: render_inputs(config, inputs, tokenizer, run.log, Path(trained)))
        rows = run.together(lambda: open_rows(config, inputs, entries, tokenizer, run.log))
        if stage == PREFERENCE:
            run.together(lambda: require_levels(rows))
        run.together(lambda: say_rejects(rows, run) if distributed.rank() == 0 else None)
        run.agree("the rows", rows.fingerprint)
        if saved is not None:
            rows.train_rows.go_on(saved.state.samples, saved.state.position)
        config = settle(run, config, model_config, config.data.seq_len, saved)
        export = partial(
            write_export,
            run.dir / "export",
            tokenizer=tokenizer,
            max_shard_bytes=int(config.export.max_shard_gb * 1e9),
            writes=distributed.rank() == 0,
        )
        stage_data = rows.stage_data()
        stage_data.parents = run.together(lambda: parents_of_rows(config, Path(trained), entries) if distributed.rank() == 0 else [])
        last = train_stage(run, config, partial(build, config, model_config, run.log), stage_data, export, saved)
    return last.get("valid/loss", last.get("train/loss", float("nan")))


def preference(config: SFTConfig) -> float:
    """Preference-aware training: the job behind `scripts/preference.py`."""
    return main(config, PREFERENCE)


def require_levels(rows: Rows) -> None:
    """Refuses rows without a level.

    Raises:
        DataError: No reply has one, or the settings leave out all of them.
    """
    from moss_train.errors import DataError

    if not rows.details.get("levels"):
        if rows.details.get("tag_dropout") is not None:
            raise DataError(
                f"data.tag_dropout={rows.details['tag_dropout']} and data.level_weights={rows.details['level_weights']} leave no level to "
                "be learned; lower the one, or raise the other for a level that data.train has"
            )
        raise DataError(
            "no reply in data.train has a level, so there is nothing to prefer; make dialogues with scripts/tag.py, or fine-tune with "
            "scripts/sft.py"
        )


def verify(config: VerifySFTConfig) -> None:
    """Runs a stretch of a job straight and interrupted, and compares: the job behind `scripts/verify_resume.py`."""
    from moss_train.train.verify import verify_resume

    verify_resume(config, config.verify, main)


def verify_preference(config: VerifySFTConfig) -> None:
    """As `verify`, of preference-aware training."""
    from moss_train.train.verify import verify_resume

    verify_resume(config, config.verify, preference)


def plan(config: PlanSFTConfig) -> None:
    """Tells what a job would take: the job behind `scripts/plan.py`."""
    from moss_train.train.plan import plan_stage

    plan_stage(config, config, config.data.seq_len)


def tokenizer_directory(config: SFTConfig, inputs: Sequence[Input], say: Any) -> str:
    """The tokenizer of `tokenizer.path`, of `init_from`, or a small one trained on the training dialogues."""
    from moss_train.sft.inputs import train_tokenizer

    given = config.tokenizer.path or config.init_from
    return given if given is not None else train_tokenizer(config.data, inputs, config.tokenizer.train_vocab_size, say)


def say_rejects(rows: Rows, run: Run) -> None:
    """Writes down the records left out, where there are any."""
    path = rows.write_rejects(run.dir)
    if path is not None:
        run.log(f"the records left out are in {path}")
