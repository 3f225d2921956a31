"""A small family of artefacts, made by the functions that make real ones, without training.

data/chat.jsonl ─convert─> data/all.jsonl ──┐
tokenizer ──────────────────> cache/rendered-* ──> runs/sft/checkpoints/step-00000002 ──> runs/sft/export ──> runs/sft/export-int8
codegen-base (made elsewhere) ────────────────────^                                          └──────────────> evaluation
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import CodeGenConfig

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.artifacts.export import write_export
from moss_train.artifacts.lineage import Parent, Source
from moss_train.data import tool
from moss_train.data.cache import Cache, key_of
from moss_train.data.tokenizer import MossTokenizer
from moss_train.files import hash_file
from moss_train.model.shapes import parameter_shapes
from moss_train.train import manifest as manifests
from tests import checkpoints

HIDDEN = 16


@dataclass(frozen=True)
class Family:
    """Where each artefact is."""

    root: Path
    data: Path
    tokenizer: Path
    base: Path
    rendered: Path
    checkpoint: Path
    export: Path
    variant: Path
    evaluation: Path

    @property
    def recorded(self) -> list[Path]:
        """Those with a record."""
        return [self.data, self.tokenizer, self.rendered, self.checkpoint, self.export, self.variant, self.evaluation]

    def at(self, root: Path) -> Family:
        """The same family at another place."""
        return Family(root, *(root / getattr(self, name).relative_to(self.root) for name in list(self.__dict__)[1:]))


def make(root: Path, seed: int = 7) -> Family:
    """Makes the family below an empty directory; with another seed, an export with other weights (and what is made from it)."""
    root.mkdir(parents=True, exist_ok=True)
    data = _convert(root / "data")
    tokenizer = MossTokenizer.train(["the quick brown fox", "你好，世界"], 290)
    tokenizer.save(root / "tokenizer")
    chat = Source("chat.jsonl", hash_file(root / "data" / "chat.jsonl").sha256, 2, "train", "CC-BY-4.0")
    lineage.write(root / "tokenizer", lineage_kinds.tokenizer("sft", [chat], tokenizer.size, tokenizer.vocab_size, tokenizer.fingerprint))
    base = _foreign(root / "codegen-base")
    rendered = _render(root, data, tokenizer)
    parents = [lineage.parent_of(base, "init"), lineage.parent_of(rendered, "data"), lineage.parent_of(root / "tokenizer", "tokenizer")]
    source = Source(data.name, hash_file(data).sha256, 2, "train", "CC-BY-4.0")
    record = lineage.Lineage(
        "checkpoint", "sft", parents, [source], {"optim": {"lr": 1e-3}}, 1000, 800, 6e9, number_format="fp32", details={"step": 2}
    )
    checkpoint = _checkpoint(root / "runs" / "sft" / "checkpoints", record)
    export = _export(root / "runs" / "sft" / "export", [lineage.parent_of(checkpoint, "source"), *parents], record, tokenizer, seed)
    return Family(
        root, data, root / "tokenizer", base, rendered, checkpoint, export, _variant(export, tokenizer), _evaluation(root, export)
    )


def _convert(folder: Path) -> Path:
    folder.mkdir()
    lines = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}]} for text in ("hello", "你好")]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert tool.main(["convert", str(folder / "chat.jsonl"), str(folder / "all.jsonl"), "--to", "moss003", "--licence", "CC-BY-4.0"]) == 0
    return folder / "all.jsonl"


def _foreign(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "codegen", "vocab_size": 320, "n_embd": HIDDEN}) + "\n")
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n# A model made elsewhere\n")
    save_file({"transformer.wte.weight": np.zeros((320, HIDDEN), dtype=np.float16)}, folder / "model.safetensors")
    return folder


def _render(root: Path, data: Path, tokenizer: MossTokenizer) -> Path:
    def make_entry(out: Path) -> dict[str, Any]:
        np.save(out / "ids.npy", np.arange(40, dtype=np.uint16))
        return {"digest": "0" * 64}

    def seal(out: Path) -> None:
        parents = [lineage.parent_of(data, "data"), lineage.parent_of(root / "tokenizer", "tokenizer")]
        found = Source(data.name, hash_file(data).sha256, 2, "train", "CC-BY-4.0")
        settings = {"loss_on": "generated", "tokenizer_fingerprint": tokenizer.fingerprint}
        lineage.write(out, lineage_kinds.rendered("sft", parents, found, settings, {"tokens": 40}))

    return Cache(root / "cache").get("documents", key_of("family"), make_entry, lambda message: None, seal)[0]


def _checkpoint(folder: Path, record: lineage.Lineage) -> Path:
    partial = folder / checkpoints.partial_name(2)
    manifest = checkpoints.write(partial, 2, shapes=checkpoints.SMALL)
    entries = {name: entry for name, entry in manifest.files.items() if name != lineage.FILE_NAME}
    lineage.write(partial, record, {name: asdict(entry) for name, entry in entries.items()})
    entries[lineage.FILE_NAME] = hash_file(partial / lineage.FILE_NAME)
    return manifests.commit(partial, replace(manifest, files=entries))


def model_config(rows: int) -> CodeGenConfig:
    """A model of a few thousand parameters."""
    return CodeGenConfig(
        vocab_size=rows, n_positions=64, n_ctx=64, n_embd=HIDDEN, n_layer=1, n_head=4, rotary_dim=4, tie_word_embeddings=False
    )


def _export(out: Path, parents: list[Parent], trained: lineage.Lineage, tokenizer: MossTokenizer, seed: int) -> Path:
    config = model_config(tokenizer.vocab_size)
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(config)
    parameters = ((name, torch.randn(shape, generator=generator)) for name, shape in shapes.items())
    details = {**trained.details, "tokenizer_fingerprint": tokenizer.fingerprint, "parameters": 11_000}
    metrics = {"valid/loss": 2.125, "valid/accuracy": 0.5}
    record = replace(trained, kind="export", parents=parents, number_format="fp16", metrics=metrics, details=details)
    write_export(out, parameters, config, "fp16", record, tokenizer=tokenizer, max_shard_bytes=12_000)
    return out


def _variant(export: Path, tokenizer: MossTokenizer) -> Path:
    out = export.with_name("export-int8")
    out.mkdir()
    config = json.loads((export / "config.json").read_text()) | {"quantization_config": {"quant_method": "plain", "bits": 8}}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in parameter_shapes(model_config(tokenizer.vocab_size)).items():
        is_linear = ".attn." in name or (".mlp." in name and name.endswith("weight"))
        tensors[name] = np.ones(shape, dtype=np.int8 if is_linear else np.float16)
    save_file(tensors, out / "model.safetensors")
    tokenizer.save(out)
    record = lineage_kinds.variant(lineage.parent_of(export, "source"), lineage.load(export), 8, "plain", None)
    lineage.write(out, record)
    return out


def _evaluation(root: Path, export: Path) -> Path:
    out = root / "evaluation"
    out.mkdir()
    (out / "results.json").write_text('{"perplexity": 8.4}\n')
    dev = Source("dev.jsonl", "1" * 64, 100, "test", "CC-BY-4.0")
    lineage.write(out, lineage_kinds.evaluation(lineage.parent_of(export, "model"), [dev], {"perplexity": 8.4}, {}))
    return out
