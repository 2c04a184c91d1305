"""Entities of English and mixed texts, from words to positions in a text, with tokenizers that see case."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast

from bertorch import load, predict
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.inference.load import load_trained
from tests.architectures import small_config
from tests.conftest import run_script
from tests.log_lines import F1_LINE, last_result, matches

PEOPLE = ["Angela Merkel", "Tim Cook", "Mary O'Neil", "May Smith", "Bill Brown", "Li Lei", "Ann Price", "John Turner"]
PLACES = ["London", "New York", "Mainz", "北京", "Turkey", "Polish Street"]
PATTERNS = [  # the small words are not names: only the case tells them apart
    "{person} didn't visit {place}.",
    "In may, {person} went to {place}, and it cost a cook's bill.",
    "The price of turkey in {place} (see {person}) may turn.",
    "{person}在{place}说: it isn't true!",
    "A polish for brown shoes costs 5 dollars in {place}.",
    "We may cook turkey.",
]


def lines_of(seed: int, count: int) -> list[dict]:
    """Texts with their entities in characters."""
    lines = []
    for number in range(seed, seed + count):
        text, entities = "", []
        pattern = PATTERNS[number % len(PATTERNS)]
        for part in pattern.replace("}", "{").split("{"):
            value = {"person": PEOPLE[number % len(PEOPLE)], "place": PLACES[number * 5 % len(PLACES)]}.get(part, part)
            if value != part:
                type_ = "PER" if part == "person" else "LOC"
                entities.append({"start": len(text), "end": len(text) + len(value), "type": type_})
            text += value
        lines.append({"text": text, "entities": entities})
    return lines


def words_of(line: dict) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text by plain loops: letters and digits that are not Chinese together, all else alone."""
    words, spans, text = [], [], line["text"]
    for index, character in enumerate(text):
        is_letter = character.isalnum() and character.isascii()
        if is_letter and spans and spans[-1][1] == index and words[-1].isascii() and words[-1].isalnum():
            words[-1] += character
            spans[-1] = spans[-1][0], index + 1
        elif not character.isspace():
            words.append(character)
            spans.append((index, index + 1))
    return words, spans


def tagged(line: dict) -> dict:
    """The same with a tag for each word."""
    words, spans = words_of(line)
    tags = ["O"] * len(words)
    for entity in line["entities"]:
        first, last = entity["start"], entity["end"]
        inside = [index for index, (start, end) in enumerate(spans) if first <= start and end <= last]
        tags[inside[0]] = f"B-{entity['type']}"
        for index in inside[1:]:
            tags[index] = f"I-{entity['type']}"
    return {"text": words, "label": tags}


TRAIN, DEV = lines_of(0, 96), lines_of(200, 24)


def word_piece(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


KINDS = {"word pieces": ("bert", word_piece), "byte-level": ("roberta", byte_level)}


@pytest.fixture(params=KINDS)
def encoder(request, tmp_path):
    """A folder of a small model with a tokenizer made from the training texts."""
    architecture, make = KINDS[request.param]
    tokenizer = make([line["text"] for line in TRAIN])
    torch.manual_seed(0)
    config = small_config(architecture, max_position_embeddings=66, hidden_dropout_prob=0.0)
    config.vocab_size = len(tokenizer)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def trained(encoder, tmp_path, name: str, lines: tuple[list, list], labels: str, **settings):
    for part, content in zip(("train", "dev"), lines, strict=True):
        (tmp_path / f"{name}.{part}").write_text("".join(json.dumps(line) + "\n" for line in content))
    (tmp_path / f"{name}.labels").write_text(labels)
    options = {
        "train_data_file": tmp_path / f"{name}.train",
        "dev_data_file": tmp_path / f"{name}.dev",
        "label_file": tmp_path / f"{name}.labels",
        "pretrained_model_name_or_path": encoder,
        "saved_dir": tmp_path / name,
        "split": "words",
        "learning_rate": 3e-3,
        "epochs": 12,
        "batch_size": 8,
        "save_steps": 1000,
        "logging_steps": 50,
        "tag": "bio",
        "max_seq_length": 48,
    } | settings
    flat = [part for key, value in options.items() for part in (f"--{key}", value)]
    return tmp_path / name, run_script("run_ner.py", *flat).stderr


def predicted(folder, tmp_path, texts: list[str], **settings) -> list[dict]:
    (tmp_path / "in.txt").write_text("".join(text + "\n" for text in texts))
    paths = {"model_dir": str(folder), "input_file": str(tmp_path / "in.txt"), "output_file": str(tmp_path / "out")}
    predict.run(predict.PredictConfig(**paths, **settings, overwrite=True))
    return [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "global_pointer"])
def test_words_from_training_to_positions_in_plain_text(head, encoder, tmp_path):
    """Tags of words, and entities of texts: the same data, so the same weights; and plain text gives what is right."""
    settings = {"head": head} | ({"head_size": 16, "crf_learning_rate": 1e-2} if head == "global_pointer" else {})
    tags = "O\nB-PER\nI-PER\nB-LOC\nI-LOC\n"
    as_tags = [tagged(line) for line in TRAIN], [tagged(line) for line in DEV]
    folder, log = trained(encoder, tmp_path, "tags", as_tags, tags, **settings)
    entities, log_of_entities = trained(encoder, tmp_path, "entities", (TRAIN, DEV), tags, **settings)
    assert last_result(F1_LINE, log) > 0.9
    assert [match.group(1) for match in matches(F1_LINE, log)] == [
        match.group(1) for match in matches(F1_LINE, log_of_entities)
    ]
    ours, theirs = (load_trained(path).model.weights.state_dict() for path in (folder, entities))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    texts = [line["text"] for line in DEV]
    rows = predicted(folder, tmp_path, texts)  # words, as in training
    right = total = 0
    for line, row in zip(DEV, rows, strict=True):
        assert row["text"] == line["text"]
        assert all(line["text"][each["start"] : each["end"]] == each["text"] for each in row["entities"])
        gold = {(each["start"], each["end"], each["type"]) for each in line["entities"]}
        right += len(gold & {(each["start"], each["end"], each["type"]) for each in row["entities"]})
        total += len(gold)
    assert right / total > 0.9
    assert "Mary O'Neil" in {each["text"] for row in rows for each in row["entities"]}
    assert {each["text"] for row in rows for each in row["entities"]}.isdisjoint({"may", "turkey", "bill", "polish"})
    (tagged_row,) = predicted(folder, tmp_path, ["Tim Cook didn't visit London."], tags=True)
    assert tagged_row["tokens"] == ["Tim", "Cook", "didn", "'", "t", "visit", "London", "."]
    found = load(folder).tag(texts)
    assert [[each.text for each in of_text.entities] for of_text in found] == [
        [each["text"] for each in row["entities"]] for row in rows
    ]
    letters = load(folder).tag(texts[:1], split="characters")[0]  # what is said wins
    assert letters.tokens == [character for character in texts[0] if not character.isspace()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_sees_words_as_in_a_text(kind):
    """The pieces of a sentence of words are those of its text, after a space, with their case."""
    tokenizer = KINDS[kind][1]([line["text"] for line in TRAIN])
    text = " Angela went to London in May . Turkey"
    words = text.split()
    data = TaggedDataset.of(tokenizer, TaggedSentences.untagged([words], split="words"), max_length=64)
    expected = tokenizer(text.replace(" .", "."))["input_ids"]
    assert data.store.input_ids.tolist() == expected
    small = TaggedDataset.of(tokenizer, TaggedSentences.untagged([["may"]], split="words"), max_length=64)
    large = TaggedDataset.of(tokenizer, TaggedSentences.untagged([["May"]], split="words"), max_length=64)
    assert small.store.input_ids.tolist() != large.store.input_ids.tolist()
    characters = TaggedDataset.of(tokenizer, TaggedSentences.untagged([words]), max_length=64)
    assert (characters.store.input_ids.tolist() == expected) == (kind == "word pieces")
