"""Whether MCLS (arXiv 2402.03216) helps a model on documents longer than the texts it was trained on.

    python benchmarks/mcls.py models/mini ../shared/data/train ../shared/data/beir --documents 200 --queries 200

MCLS is for models that pool by their first token; mini takes the mean of all and has 512 positions. So a sibling of it
is made that does: the first token's state learns, by distillation, to be the dense vector that mini gives, on texts of
up to 256 tokens, and the positions are then repeated up to 2,048. It is kept in build/mcls, and what was measured is
not measured again. Long documents are read cut at 512 and at 2,048 tokens, without MCLS and with it, beside mini.

Writes benchmarks/results/mcls.json after each data set and prints nDCG@10 of the dense vectors.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dense_ranking import ndcg
from m3edge_export.checkpoint import TOKENIZER, Checkpoint, load_checkpoint, model_info, save_checkpoint
from m3edge_export.export import export_onnx
from m3edge_export.model import M3Model
from m3edge_export.training.data import read_pairs, sample_passages
from m3edge_export.training.states import live_states
from machine import RESULTS, ROOT
from mcls_report import layout
from reports import resumed, save
from transformers import PreTrainedModel

from m3edge import Encoder
from m3edge.encoder import plan_batches
from m3edge.evaluation import BeirDataset, read_beir
from m3edge.files import new_folder
from m3edge.progress import progress_bar
from m3edge.tokenization import TokenizedText, Tokenizer

LONG = ("narrativeqa-en", "qmsum-en", "reactdocs-en", "reactdocs-fr", "reactdocs-ko", "reactdocs-zh")
TRAINED_TOKENS = 256
POSITIONS = 2048
CUTS = (512, POSITIONS)
INTERVALS = (None, 256, 128)  # None: without MCLS; 256 is the paper's
TEACHER, STUDENT = "mini, mean of all", "first token"
_POOL_TEXTS = 1024  # sorted by length together
_BATCH_TOKENS = 2048
_RATE = 1e-4
_REPORT_EVERY = 50  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the mini model's checkpoint")
    parser.add_argument("train", type=Path, help="folder of training files")
    parser.add_argument("data", type=Path, help="folder of BEIR folders")
    parser.add_argument("--sets", nargs="*", default=list(LONG), help="BEIR folders; default: %(default)s")
    parser.add_argument("--documents", type=int, help="of each set; default: all")
    parser.add_argument("--queries", type=int, help="of each set; default: all")
    parser.add_argument("--steps", type=int, default=600, help="of the distillation; default: %(default)s")
    parser.add_argument("--provider", default="cpu", help="that runs the models, in fp32; default: %(default)s")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mcls", help="default: build/mcls")
    parser.add_argument("--out", type=Path, default=RESULTS / "mcls.json")
    options = parser.parse_args()

    student = options.work / f"first-token-{options.steps}"
    teacher = load_checkpoint(options.source, attention="sdpa")
    if not student.exists():
        make_student(teacher, training_texts(options.train), options.steps, student)
    folders = {TEACHER: options.work / "mini-fp32", STUDENT: student.with_name(f"{student.name}-fp32")}
    for folder, source in zip(folders.values(), (options.source, student), strict=True):
        if not folder.exists():
            export_onnx(source, folder)
    settings = {
        "fingerprint": model_info(teacher).fingerprint,
        "steps": options.steps,
        "documents": options.documents,
        "queries": options.queries,
        "provider": options.provider,
    }
    report = resumed(options.out, settings, training=json.loads((student / "distillation.json").read_bytes()), rows=[])
    encoders = {name: Encoder.load(folder, options.provider, verify=False) for name, folder in folders.items()}
    for name in options.sets:
        dataset = read_beir(options.data / name, n_queries=options.queries, n_documents=options.documents)
        measure(encoders, dataset, report, options.out)
    print(layout(report))


def training_texts(folder: Path, per_file: int = 1500, seed: int = 0) -> list[tuple[str, bool]]:
    """Each a text and whether it is a query: those of at most so many passages of each file, in random order."""
    texts: dict[tuple[str, bool], None] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        for pair in sample_passages(read_pairs(path)[0], per_file, seed):
            texts[pair.query, True] = texts[pair.positive, False] = None
    order = list(texts)
    random.Random(seed).shuffle(order)
    return order


def make_student(teacher: Checkpoint, texts: Sequence[tuple[str, bool]], steps: int, out: Path) -> None:
    """Write the checkpoint of a model like the teacher that pools by its first token and has POSITIONS positions."""
    torch.manual_seed(0)
    model = M3Model(deepcopy(teacher.model.encoder), token_dim=teacher.model.token_dim, pooling="cls")
    for head in ("sparse_head", "token_head"):  # not measured here, but a checkpoint has them
        getattr(model, head).load_state_dict(getattr(teacher.model, head).state_dict())
    with new_folder(out) as folder:
        losses = distil(teacher, model, texts, steps)
        save_checkpoint(
            folder,
            M3Model(stretched(model.encoder), token_dim=model.token_dim, pooling="cls").eval(),
            replace(teacher.settings, name="mini-first-token", pooling="cls", max_length=0),
            teacher.tokenizer_files(),
        )
        (folder / "distillation.json").write_text(json.dumps({"steps": steps, "cosine": losses}))


def distil(teacher: Checkpoint, model: M3Model, texts: Sequence[tuple[str, bool]], steps: int) -> dict[str, float]:
    """Train the upper half of the model's layers until its dense vector is the teacher's.

    The loss is 1 - cos(student, teacher). Returns step -> mean cosine since the one before.
    """
    model.requires_grad_(False)
    layers = model.encoder.encoder.layer
    learning = [parameter for layer in layers[len(layers) // 2 :] for parameter in layer.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=0.1)
    tokenizer = Tokenizer(teacher.folder / TOKENIZER)
    prefixes = {True: teacher.settings.query_prefix, False: teacher.settings.passage_prefix}
    found, recent, step = {}, [], 0
    with progress_bar(steps, "step", "distilling", True) as bar:
        while step < steps:
            for batch in batches(tokenizer, prefixes, texts, seed=step):
                with torch.no_grad():
                    wanted = live_states(teacher.model, batch, _BATCH_TOKENS).dense
                cosine = (live_states(model, batch, _BATCH_TOKENS).dense * wanted).sum(dim=1).mean()
                optimizer.zero_grad()
                (1 - cosine).backward()
                optimizer.step()
                schedule.step()
                recent.append(cosine.item())
                step += 1
                bar.update(1)
                if step % _REPORT_EVERY == 0 or step in (1, steps):
                    found[str(step)] = round(sum(recent) / len(recent), 4)
                    print(f"step {step}: cosine {found[str(step)]}", file=sys.stderr, flush=True)
                    recent = []
                if step == steps:
                    break
    return found


def batches(
    tokenizer: Tokenizer, prefixes: dict[bool, str], texts: Sequence[tuple[str, bool]], seed: int
) -> Iterator[list[TokenizedText]]:
    """All texts once, in batches of similar length; those of each pool in random order."""
    generator = random.Random(seed)
    for start in range(0, len(texts), _POOL_TEXTS):
        pool: list[TokenizedText] = []
        for is_query, prefix in prefixes.items():
            chosen = [text for text, kind in texts[start : start + _POOL_TEXTS] if kind == is_query]
            pool += tokenizer.tokenize(chosen, prefix=prefix, max_length=TRAINED_TOKENS)
        made = list(plan_batches([len(text.ids) for text in pool], _BATCH_TOKENS, may_pad=True))
        generator.shuffle(made)
        yield from ([pool[i] for i in rows] for rows in made)


def stretched(encoder: PreTrainedModel) -> PreTrainedModel:
    """The same encoder with its positions repeated until there are POSITIONS of them."""
    config = deepcopy(encoder.config)
    config.max_position_embeddings = POSITIONS
    weights = encoder.state_dict()
    positions = weights["embeddings.position_embeddings.weight"]
    weights["embeddings.position_embeddings.weight"] = positions.repeat(-(-POSITIONS // len(positions)), 1)[:POSITIONS]
    longer = type(encoder)(config, add_pooling_layer=False)
    longer.load_state_dict(weights)
    return longer


def measure(encoders: dict[str, Encoder], dataset: BeirDataset, report: dict[str, Any], out: Path) -> None:
    """Add a row for each model, cut and interval that the report lacks, and write it."""
    queries = list(dataset.queries.values())
    documents = list(dataset.corpus.values())
    cases = [(TEACHER, CUTS[0], None), *((STUDENT, cut, interval) for cut in CUTS for interval in INTERVALS)]
    for model, cut, interval in cases:
        case = {"dataset": dataset.name, "model": model, "cut": cut, "interval": interval}
        if any({key: row[key] for key in case} == case for row in report["rows"]):
            continue
        plain = encoders[model]
        encoder = Encoder(plain.info, plain.session, plain.tokenizer, mcls_interval=interval)
        found = encoder.encode_passages(documents, heads=["dense"], max_length=cut)
        score = ndcg(dataset, encoder.encode_queries(queries, heads=["dense"]).dense, found.dense)
        report["rows"].append(
            {
                **case,
                "documents": len(documents),
                "queries": len(queries),
                "truncated": round(float(found.truncated.mean()), 3),
                "nDCG@10": score,
            }
        )
        save(out, report)
        print(f"{case}: {score}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
