"""The closing tables of the demo: stage by stage, what levels did, what variants of fewer bits cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moss_train.data.comparisons import parse_responses
from moss_train.pm.checkers import check_line, is_correct
from moss_train.pm.ranking import make_line

VARIANTS = ("bf16", "int8", "int4")
OTHERS = ("base", "sft", "pm")
"""Models that get variants too, where the demo is thorough."""
PLACES = (
    "base/export",
    "extended",
    "corpus",
    "pretrain/export",
    "sft/export",
    "pm/export",
    "preference/export",
    "untagged/export",
    "best_only/export",
)


def summary(run: Path, seed: int, seconds: float) -> None:
    """The closing tables: stage, tokens, loss before and after, artefact; and what tags did, beside the alternatives."""
    stages = [of_stage(run, place) for place in PLACES]
    print("\n| stage | tokens | with loss | what came of it | artefact |\n|---|---|---|---|---|")
    for stage in stages:
        supervised = "" if stage["supervised"] is None else f"{stage['supervised']:,}"
        print(f"| {stage['name']} | {stage['tokens']:,} | {supervised} | {stage['came']} | {stage['id'][:19]} |")
    report = read_json(run / "pm" / "pm_report.json")
    kept = {name: report[name] for name in ("comparisons", "pairs", "accuracy", "baselines", "by_category")}
    shares = {part: share_correct(run / f"responses_{part}.jsonl") for part in ("train", "heldout")}
    found = {"seed": seed, "seconds": round(seconds), "stages": stages, "responses_correct": shares, "preference_model": kept}
    control = read_json(run / "control" / "report.json")
    print("\n| answers to held-out questions | correct | 95 % | wins over sft, by the second preference model |\n|---|---|---|---|")
    for name, condition in control["conditions"].items():
        print(f"| {name} | {of_condition(condition)} |")
    for strength, spearman in [(1, control["spearman"]), *((one["guidance"], one["spearman"]) for one in control["guided"])]:
        low, high = spearman["reward"]["interval"]
        told = f"{spearman['reward']['value']:.2f} ({low:.2f} to {high:.2f})"
        print(f"\nlevel asked for and reward by the second preference model, guidance {strength:g}: Spearman {told}")
    found["control"] = {name: control[name] for name in ("spearman", "contrasts", "guided", "conditions", "conclusion")}
    found["variants"] = [of_variant(run, name) for name in VARIANTS]
    show_variants(found["variants"])
    places = {f"{name} {bits}": run / "variants" / name / bits / "model" for name in OTHERS for bits in VARIANTS[1:]}
    records = {name: read_json(place / "quantization.json") for name, place in places.items() if place.is_dir()}
    found["other_variants"] = {name: record["measured"] for name, record in records.items()}
    if found["other_variants"]:
        print("\n| other models | KL | rounding | MB | MB of its source |\n|---|---|---|---|---|")
        for name, one in found["other_variants"].items():
            print(f"| {name} | {one['heldout/kl']:.2g} | {of_rounding(one)} | {one['bytes'] / 1e6:.1f} | {one['source_bytes'] / 1e6:.1f} |")
    pictures = ["sft/plots/loss.png", "pm/plots/reliability.png", "control/control.png", "lineage.svg"]
    (run / "demo.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\npictures: {', '.join(f'{run / name}' for name in pictures)}\nthe demo took {seconds:.0f} s")


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def of_stage(run: Path, place: str) -> dict[str, Any]:
    """A line of the first table."""
    record = read_json(run / place / "lineage.json")
    tokens, supervised = record["tokens_seen"], record["supervised_tokens"]
    name = place.removesuffix("/export") if record["stage"] == "sft" else record["stage"]
    if place == "extended":
        tokens, supervised, came = 0, None, of_extension(run / place / "extension.json")
    elif place == "corpus":
        corpus = read_json(run / place / "corpus.json")["totals"]
        tokens, supervised, came = corpus["tokens"], None, f"{corpus['documents']:,} documents"
    elif place == "pm/export":
        supervised, came = None, of_preferences(run)
    else:
        came = of_losses((run / place).parent / "metrics.jsonl", record["stage"])
    return {"name": name, "stage": record["stage"], "tokens": tokens, "supervised": supervised, "came": came, "id": record["id"]}


def of_variant(run: Path, name: str) -> dict[str, Any]:
    """What a variant of the last model is and does; of the model itself the same, where it has it."""
    place = run / "variants" / name
    perplexity = read_json(place / "texts" / "report.json")["figures"]["perplexity/perplexity"]
    correct = {path.stem: share_correct(path) for path in sorted(place.glob("*.jsonl"))}
    found: dict[str, Any] = {"name": name, "perplexity": perplexity["value"], "correct": correct}
    record = place / "model" / "quantization.json"
    if record.is_file():
        made = read_json(record)
        found |= {"method": made["method"], **made["measured"]}
    return found


def show_variants(variants: list[dict[str, Any]]) -> None:
    """The third table."""
    tags = list(variants[0]["correct"])
    whole = next(one["source_bytes"] for one in variants if "source_bytes" in one)
    print(f"\n| last model | perplexity | KL | rounding | MB | MB in memory | {' | '.join(f'correct, {tag}' for tag in tags)} |")
    print(f"|{'---|' * (6 + len(tags))}")
    for one in variants:
        correct = " | ".join(f"{one['correct'][tag]:.1%}" for tag in tags)
        if "method" not in one:
            print(f"| {one['name']} | {one['perplexity']:.3f} | | | {whole / 1e6:.1f} | | {correct} |")
            continue
        cells = [
            f"{one['name']}, {one['method']}",
            f"{one['perplexity']:.3f}",
            f"{one['heldout/kl']:.2g}",
            of_rounding(one),
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['memory'] / 1e6:.1f}",
        ]
        print(f"| {' | '.join(cells)} | {correct} |")


def of_rounding(measured: dict[str, Any]) -> str:
    """KL of the same model rounded to as few bits, where it was measured."""
    rounding = measured.get("heldout/kl_round_to_nearest")
    return "" if rounding is None else f"{rounding:.2g}"


def of_condition(found: dict[str, Any]) -> str:
    """A line of the second table, without its name."""
    correct = found["correct"]
    low, high = correct["interval"]
    win = found["over_sft"]["win"]["rate"] if "over_sft" in found else None
    return f"{correct['share']:.1%} | {low:.1%} to {high:.1%} | {'' if win is None else f'{win:.0%}'}"


def of_extension(path: Path) -> str:
    """What more vocabulary did to held-out text."""
    report = read_json(path)["heldout"]
    gain = report["zh"]["tokens_before"] / report["zh"]["tokens_after"]
    changed = report["code"]["changed_elsewhere"] + report["en"]["changed_elsewhere"]
    return f"Chinese takes {gain:.2f} times fewer tokens; {changed} texts without Chinese changed"


def of_losses(metrics: Path, stage: str) -> str:
    """What training did to held-out losses."""
    found = [event for event in map(json.loads, metrics.read_text(encoding="utf-8").splitlines()) if "eval/valid/loss" in event]
    if stage != "pretrain":
        return f"validation loss {found[0]['eval/valid/loss']:.3f} -> {found[-1]['eval/valid/loss']:.3f}"
    names = [f"eval/valid/bits_per_byte/{language}" for language in ("zh", "en", "code")]
    changes = [f"{name.rpartition('/')[2]} {found[0][name]:.2f} -> {found[-1][name]:.2f}" for name in names]
    return f"bits per byte of held-out text: {', '.join(changes)}"


def of_preferences(run: Path) -> str:
    """How often the preference model finds the right answer of two, beside what is trivial."""
    report = read_json(run / "pm" / "pm_report.json")
    accuracy, baselines = report["accuracy"], report["baselines"]
    low, high = accuracy["interval"]
    length = max(baselines["longer"]["accuracy"], baselines["shorter"]["accuracy"])
    words = baselines["bag_of_words"]["accuracy"]
    return (
        f"held-out pairs: {accuracy['accuracy']:.1%} right (95 %: {low:.1%} to {high:.1%}; "
        f"bag of words {words:.1%}, length {length:.1%}, coin 50 %)"
    )


def share_correct(path: Path) -> float:
    """Share of a file's responses that are correct."""
    verdicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        asked = make_line(number, path.name, parse_responses(record, path.name))
        checker = check_line(asked, None)
        verdicts += [is_correct(asked, index, checker) for index in range(len(record["responses"]))]
    return sum(verdicts) / len(verdicts)
