"""Training of the preference model: comparisons -> samples -> the loop -> rewards on held-out comparisons -> an export."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train.pm.config import PlanPMConfig, PMConfig, VerifyPMConfig

if TYPE_CHECKING:
    import torch

    from moss_train.artifacts.lineage import Lineage
    from moss_train.pm.data import Samples
    from moss_train.train.run import Run

REPORT = "pm_report.json"
_BASELINE_COMPARISONS = 20_000
"""Training comparisons that the bag of words learns from."""


def main(config: PMConfig) -> float:
    """Runs one training job.

    Returns:
        The final validation loss per comparison (the training loss where there is no validation data): what a sweep minimises.
    """
    from moss_train.data.inputs import Input
    from moss_train.data.loader import StepPlan
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.model.pm import pm_config
    from moss_train.model.preference import PreferenceObjective
    from moss_train.pm.data import find_inputs, open_cache, open_samples, parents_of_samples, render_inputs, train_tokenizer
    from moss_train.train import engine as distributed
    from moss_train.train.auto import settle
    from moss_train.train.resume import find_checkpoint
    from moss_train.train.run import open_run
    from moss_train.train.stage import train_stage
    from moss_train.train.start import architecture, build_pm, fit_vocabulary, verify_start

    with open_run(config, "pm") as run:
        StepPlan(config.train.global_batch_size, config.train.micro_batch_size, distributed.world_size())
        distributed.check_section(config.deepspeed)
        saved = find_checkpoint(run)
        run.once_per_machine("what the run starts from", lambda: verify_start(config, open_cache(config.data), run.log))
        model_config = run.together(lambda: architecture(config, config.data.seq_len, run.log))
        found = run.once_per_machine("the data files", lambda: [asdict(one) for one in find_inputs(config.data)])
        inputs = [Input(**one) for one in found]
        given = config.tokenizer.path or config.init_from
        trained = run.once_per_machine(
            "the tokenizer",
            lambda: given if given is not None else train_tokenizer(config.data, inputs, config.tokenizer.train_vocab_size, run.log),
        )
        tokenizer = run.together(lambda: MossTokenizer.load(trained))
        model_config = run.together(lambda: fit_vocabulary(config, model_config, tokenizer))
        entries = run.once_per_machine("the data to be rendered", lambda: render_inputs(config, inputs, tokenizer, run.log, Path(trained)))
        samples = run.together(lambda: open_samples(config, inputs, entries, tokenizer, run.log))
        run.together(lambda: _say_rejects(samples, run) if distributed.rank() == 0 else None)
        run.agree("the comparisons", samples.fingerprint)
        if saved is not None:
            samples.train.go_on(saved.state.samples, saved.state.position)

        def build_model(weights: Path | None) -> torch.nn.Module:
            model: Any = build_pm(config, model_config, samples.with_lm, run.log, weights)
            model.set_objective(PreferenceObjective(**asdict(config.objective)))
            return model

        data = samples.stage_data()
        config = settle(run, config, pm_config(model_config, samples.with_lm), data.row_tokens or config.data.seq_len, saved)
        ending = _Ending(run, config, samples, tokenizer)
        data.finish = ending.measure
        data.parents = run.together(lambda: parents_of_samples(config, Path(trained), entries) if distributed.rank() == 0 else [])
        last = train_stage(run, config, build_model, data, ending.export, saved)
    return last.get("valid/loss", last.get("train/loss", float("nan")))


def _say_rejects(samples: Samples, run: Run) -> None:
    path = samples.write_rejects(run.dir)
    if path is not None:
        run.log(f"the records left out are in {path}")


class _Ending:
    """What comes after training: the report on held-out comparisons, and the export that holds it."""

    def __init__(self, run: Run, config: PMConfig, samples: Samples, tokenizer: Any):
        self.run, self.config, self.samples, self.tokenizer = run, config, samples, tokenizer
        self.report: dict[str, Any] | None = None

    def measure(self, engine: Any) -> dict[str, float]:
        """Rewards of the validation comparisons, and what follows from them. A collective."""
        from moss_train.train import engine as distributed

        rewards = self._rewards(engine)
        if self.samples.valid is None or distributed.rank() != 0:
            return {}
        return self._report(rewards)

    def _rewards(self, engine: Any) -> dict[int, list[float]]:
        """Number of a validation comparison -> its rewards; on rank 0."""
        import torch

        from moss_train.train import engine as distributed

        evaluation = self.samples.evaluation()
        if evaluation is None:
            return {}
        mine: dict[int, list[float]] = {}
        engine.eval()
        try:
            with torch.no_grad():
                for numbers, batch in zip(evaluation.numbers(), evaluation):
                    self.run.beat(f"scoring validation comparisons {numbers[:1]}")
                    rewards = engine(**batch.to(distributed.device()).inputs).rewards.float().tolist()
                    for number in numbers:
                        count = len(evaluation.rows.row(number).documents)
                        mine[number], rewards = rewards[:count], rewards[count:]
        finally:
            engine.train()
        every = distributed.gather(mine)
        return {number: rewards for part in every for number, rewards in part.items()}

    def _report(self, rewards: dict[int, list[float]]) -> dict[str, float]:
        from moss_train import files
        from moss_train.evaluate.preference_calibration import fit_temperature
        from moss_train.evaluate.preference_pairs import Judged
        from moss_train.evaluate.preference_report import report
        from moss_train.evaluate.preference_table import describe
        from moss_train.evaluate.reliability_plot import reliability_diagram

        valid = self.samples.valid
        assert valid is not None
        first = valid.store.first_response
        judged = [
            Judged(comparison, rewards[number], valid.store.replies[first[index] : first[index + 1]].tolist())
            for number, (index, comparison) in enumerate(zip(valid.chosen, self.samples.comparisons(valid)))
        ]
        train = [one for part in self.samples.train_parts for one in self.samples.comparisons(part, _BASELINE_COMPARISONS)]
        temperature = fit_temperature(judged)
        found = report(judged, temperature=temperature, train=train[:_BASELINE_COMPARISONS], seed=self.config.run.seed)
        self.report = {"temperature": temperature, **found}
        files.replace_content(self.run.dir / REPORT, (json.dumps(self.report, indent=1, ensure_ascii=False) + "\n").encode())
        plots = self.run.dir / "plots"
        plots.mkdir(exist_ok=True)
        reliability_diagram(self.report, plots / "reliability.png")
        self.run.log(f"\nheld-out comparisons:\n{describe(self.report)}")
        return {"valid/temperature": temperature}

    def export(self, parameters: Iterable[tuple[str, Any]], model_config: Any, dtype: str, record: Lineage) -> str | None:
        """Writes the preference model; of one with both heads, without the output projection."""
        from moss_train.artifacts.export import write_export
        from moss_train.model.pm import pm_config
        from moss_train.train import engine as distributed

        made = pm_config(model_config)
        beside = None
        if self.report is not None:
            made.moss_temperature = self.report["temperature"]
            record.details["temperature"] = self.report["temperature"]
            beside = {REPORT: json.dumps(self.report, indent=1, ensure_ascii=False) + "\n"}
        return write_export(
            self.run.dir / "export",
            ((name, tensor) for name, tensor in parameters if not name.startswith("lm_head.")),
            made,
            dtype,
            record,
            tokenizer=self.tokenizer,
            max_shard_bytes=int(self.config.export.max_shard_gb * 1e9),
            writes=distributed.rank() == 0,
            beside=beside,
        )


def verify(config: VerifyPMConfig) -> None:
    """Runs a stretch of a job straight and interrupted, and compares."""
    from moss_train.train.verify import verify_resume

    verify_resume(config, config.verify, main)


def plan(config: PlanPMConfig) -> None:
    """Tells what a job would take: the job behind `scripts/plan.py`."""
    from moss_train.model.pm import pm_config
    from moss_train.train.plan import plan_stage

    row_tokens = config.data.seq_len * config.data.max_responses
    plan_stage(config, config, row_tokens, partial(pm_config, with_lm=config.objective.lm_coefficient > 0))
