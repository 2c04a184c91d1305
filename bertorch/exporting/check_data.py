"""What an export is checked on: the file that the user names, the dev examples of its run, or texts that are here."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from bertorch.data.dataset import Examples, Subset
from bertorch.data.fingerprint import content_digest
from bertorch.errors import UserError
from bertorch.files import read_record
from bertorch.tasks.base import Task
from bertorch.training.drawn_examples import DRAWN
from bertorch.training.run_folder import DATA_FILES, RECORD

BUILT_IN = "built-in texts"
TEXTS = 256  # of those
_LONGEST = 512
_CHARACTERS = 5  # of a token of English
_SENTENCES = (
    "房间干净，早餐也丰富，下次还住这里。",
    "怎么把零钱提现到银行卡？",
    "他1998年毕业于北京大学，现任公司董事长。",
    "屏幕有一点暗，别的都好。",
    "今年第三季度营收同比增长12.5%，净利润3.2亿元",
    "你好",
    "价格太贵了！！！",
    "（未完待续）……",
    "The room was clean, and breakfast was good; we'd stay again.",
    "How do I reset my password?",
    "OK",
    "In 2019, Dr. A. Smith of Acme Corp. paid $1,299.99 (plus VAT) for it.",
    "not bad at all :)",
    "http://example.com/a?b=c",
    "Das Zimmer war sauber, aber laut.",
    "La réunion est reportée à jeudi.",
    "こちらの商品はいくらですか。",
    "Где ближайшая станция?",
    "iPhone手机的battery不耐用，only 3 小时",
    "😀👍",
    "A",
    "。",
    "1234567890",
    "ＡＢＣ　全角文字",
    "naïve café—coöperate",
)


def varied_texts(number: int, longest: int) -> list[str]:
    """Texts from one token to more than `longest` tokens, in several languages; always the same."""
    draw = random.Random(0)
    texts = list(_SENTENCES[: number // 2])
    while len(texts) < number:
        characters = round((_CHARACTERS * longest) ** (len(texts) / (number - 1)))
        text = "A"
        while len(text) <= characters:
            text += draw.choice(_SENTENCES)
        texts.append(text[1 : 1 + characters])
    return texts


@dataclass(frozen=True)
class CheckData:
    """Examples to compare two models on.

    With labels, `examples` are as the evaluation takes them; without, `inputs` are those of `Task.agreement`.
    """

    name: str  # of the file
    examples: Examples | None = None
    inputs: Sequence[Any] = ()


def built_in(task: Task[Any]) -> CheckData:
    """Texts without labels that every model can be checked on, up to the length that it was trained with."""
    return CheckData(BUILT_IN, inputs=task.agreement().inputs_of(varied_texts(TEXTS, task.max_seq_length)))


def longest_examples(task: Task[Any], number: int = 128) -> Examples:
    """As `built_in`, tokenised, up to the length that the model has positions for, at most 512 tokens."""
    limits = [encoder.max_length for encoder in task.model.encoders]
    trained = task.max_seq_length
    try:
        task.max_seq_length = min([_LONGEST, *(limit for limit in limits if limit is not None)])
        agreement = task.agreement()
        return agreement.inference.examples_of(agreement.inputs_of(varied_texts(number, task.max_seq_length)))
    finally:
        task.max_seq_length = trained


def check_data(task: Task[Any], folder: str, file: str | None) -> CheckData:
    """What a task is checked on: a file, with or without labels; None is what its folder remembers of its run.

    Raises:
        UserError: the file cannot be read.
    """
    if file is not None:
        return _of_file(task, file)
    found = _remembered(task, folder)
    return built_in(task) if found is None else found


def _of_file(task: Task[Any], path: str) -> CheckData:
    try:
        _, examples = task.read_labelled(path, "stop")
    except UserError as error:
        if _has_labelled_lines(task, path):  # so one of its lines is wrong
            raise
        try:
            inputs = list(task.agreement().read(path))
        except UserError:
            raise error from None
        logger.info("{}: is read as inputs without labels", path)
        if len(inputs) < 2:
            raise UserError(f"{path}: expected two inputs or more to compare, got {len(inputs)}") from None
        return CheckData(path, inputs=inputs)
    return CheckData(path, examples)


def _has_labelled_lines(task: Task[Any], path: str) -> bool:
    logger.disable("bertorch.data")  # which would count the lines that are skipped
    try:
        return len(task.read_labelled(path, "skip")[1]) > 0
    except UserError:
        return False
    finally:
        logger.enable("bertorch.data")


def _remembered(task: Task[Any], folder: str) -> CheckData | None:
    """The dev examples of the run that saved the folder, if they are still what they were."""
    record = read_record(
        Path(folder) / RECORD,
        lambda read: (dict(read["options"]), dict(read.get(DATA_FILES) or {})),
        expected="the record of a run",
        remedy="repair or remove that file, or name a --check_file",
    )
    if record is None:
        return None
    options, files = record
    drawn: list[int] | None = read_record(
        Path(folder) / DRAWN,
        lambda read: [int(number) - 1 for number in read["examples"]],
        expected="the numbers of dev examples",
        remedy="repair or remove that file, or name a --check_file",
    )
    option = "--dev_data_file" if drawn is None else "--train_data_file"
    path = files.get(option)
    if path is None:
        return None
    if content_digest(path) != options.get(f"content of {option}"):
        logger.warning("{}: is gone or has another content than in the run, so that the check is on other texts", path)
        return None
    logger.info("the check is on the dev examples of the run: {}", path)
    _, examples = task.read_labelled(path, str(options.get("--on_bad_line", "stop")))
    name = Path(path).name  # stands in the model card, which others read
    if drawn is not None:
        examples = Subset(examples, np.array(drawn, dtype=np.int64))
        return CheckData(f"{name}, the {len(drawn)} examples of --dev_ratio", examples)
    return CheckData(name, examples)
