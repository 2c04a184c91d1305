"""What the checks work on: encoders with random weights, and files of random sentences of the lengths of real ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, BertTokenizerFast

from benchmarks.measuring import DATA

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
LINES = 8000
# bert-base-chinese, and a ModernBERT of that size; the tokens in use are those of the embedded tokenizer.
VOCABULARY = 21128  # of bert-base-chinese
SHAPES: dict[str, dict[str, int]] = {
    "bert": {"vocab_size": VOCABULARY},
    "modernbert": {
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}
PRETENDED = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}


@dataclass(frozen=True)
class Material:
    """A folder with encoders and data, the same whenever it is made.

    Attributes:
        folder: where it is.
        pretend: whether the encoders are tiny and the runs are short.
    """

    folder: Path
    pretend: bool

    def make(self) -> None:
        """Write everything."""
        torch.manual_seed(0)
        vocabulary = (DATA / "bert-tiny-zh" / "vocab.txt").read_text(encoding="utf-8").splitlines()
        unused = [f"[unused{number}]" for number in range(VOCABULARY - len(vocabulary))]
        self._write("vocab.txt", [*vocabulary, *unused])
        tokenizer = BertTokenizerFast(self.file("vocab.txt"))
        for architecture, shape in SHAPES.items():
            config = AutoConfig.for_model(architecture, **shape, **(PRETENDED if self.pretend else {}))
            AutoModel.from_config(config).save_pretrained(self.encoder(architecture))
            tokenizer.save_pretrained(self.encoder(architecture))
        generator = np.random.default_rng(0)
        characters = np.array([token for token in vocabulary if len(token) == 1 and "一" <= token <= "龥"])
        lines = 400 if self.pretend else LINES

        def sentences(median: float, spread: float) -> list[str]:
            sizes = generator.lognormal(np.log(median), spread, lines).clip(4, 500).astype(int)
            return ["".join(generator.choice(characters, size)) for size in sizes]

        labels = generator.integers(0, 2, lines)
        # At 128 tokens, ChnSentiCorp has 81 a text and 29 % that are cut, LCQMC 25 a pair.
        texts = sentences(72, 0.9)
        pairs = zip(sentences(10.5, 0.3), sentences(10.5, 0.3), strict=True)
        self._write("texts.tsv", [f"{text}\t{label}" for text, label in zip(texts, labels, strict=True)])
        self._write("pairs.tsv", [f"{a}\t{b}\t{label}" for (a, b), label in zip(pairs, labels, strict=True)])
        self._write("dev.tsv", [f"{text}\t{label}" for text, label in zip(texts[:200], labels, strict=False)])
        self._write("labels.txt", ["0", "1"])
        self._write("tags.txt", list(TAGS))
        self._write("entities.json", [_tagged(text, generator) for text in sentences(45, 0.4)])

    def encoder(self, architecture: str) -> str:
        """The folder of an encoder of `SHAPES`."""
        return str(self.folder / architecture)

    def file(self, name: str) -> str:
        """The path of a data file."""
        return str(self.folder / name)

    def _write(self, name: str, lines: list[str]) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _tagged(text: str, generator: np.random.Generator) -> str:
    tags = ["O"] * len(text)
    for start in range(0, len(text) - 3, 12):
        kind = generator.choice(["PER", "ORG", "LOC"])
        tags[start : start + 3] = [f"B-{kind}", f"I-{kind}", f"I-{kind}"]
    quoted = ", ".join(f'"{character}"' for character in text), ", ".join(f'"{tag}"' for tag in tags)
    return f'{{"text": [{quoted[0]}], "label": [{quoted[1]}]}}'
