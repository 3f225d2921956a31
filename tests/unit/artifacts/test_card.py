"""What a model card says of where a model comes from."""

from __future__ import annotations

import yaml
from transformers import CodeGenConfig

from moss_train.artifacts import card
from moss_train.artifacts.lineage import Lineage, Parent, Source
from moss_train.model.pm import pm_config

CONFIG = CodeGenConfig(vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, tie_word_embeddings=False)


def record(*parents: Parent, stage: str = "sft", tokens: int = 1000) -> Lineage:
    data = [Source("dialogues.jsonl", "ab" * 32, 12, licence="CC-BY-NC-4.0")]
    return Lineage("export", stage, list(parents), data, tokens_seen=tokens, metrics={"valid/loss": 1.25, "broken": float("nan")})


def test_a_model_from_random_weights() -> None:
    text = card.render("mine", CONFIG, record(Parent("source", "sha256:1", "step-00000010")))
    assert "from random weights, on 1,000 tokens" in text
    assert "step-00000010 (source)" in text
    assert "| dialogues.jsonl | train | 12 | CC-BY-NC-4.0 |" in text
    assert "| valid/loss | 1.2500 |" in text
    assert "broken" not in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-nc-4.0"


def test_a_tuned_model_names_its_base() -> None:
    text = card.render("mine", CONFIG, record(Parent("source", "sha256:1", "step-00000010"), Parent("init", "sha256:2", "codegen-2B")))
    assert "from codegen-2B, on 1,000 tokens" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("codegen-2B", "finetune")


def test_a_rewritten_model_does_not_claim_random_weights() -> None:
    made = record(Parent("source", "sha256:1", "moss"), Parent("init", "sha256:2", "codegen-2B"))
    made.details["rewritten_from"] = "moss"
    text = card.render("copy", CONFIG, made)
    assert "It is moss, rewritten. It was trained by the stage `sft`, from codegen-2B, on" in text
    foreign = record(Parent("source", "sha256:1", "moss-moon-003-sft"), stage="import")
    foreign.details["rewritten_from"] = "moss-moon-003-sft"
    text = card.render("copy", CONFIG, foreign)
    assert "It is moss-moon-003-sft, rewritten. How that was made is not recorded." in text
    assert "random weights" not in text


def test_a_preference_model_is_not_used_as_a_language_model() -> None:
    made = record(Parent("source", "sha256:1", "step-00000010"), stage="pm")
    made.details["temperature"] = 0.25
    text = card.render("mine", pm_config(CONFIG), made)
    assert "python scripts/score.py model=mine responses=responses.jsonl" in text
    assert "divided by 0.25" in text
    assert "AutoModelForCausalLM" not in text
    assert "generation_config.json" not in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["pipeline_tag"], front["tags"]) == ("text-classification", ["codegen", "moss", "preference-model"])
    made.details["layout"] = "gptj"
    assert 'AutoModelForSequenceClassification.from_pretrained("mine")' in card.render("mine", pm_config(CONFIG), made)
