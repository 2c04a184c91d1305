r"""Sequence labelling, such as named entities, by BERT and a linear layer, a CRF, or a global pointer.

    python run_ner.py --train_data_file data/ner/train.json --dev_data_file data/ner/dev.json \
        --label_file data/ner/labels.txt --pretrained_model_name_or_path data/bert-tiny-zh --use_crf
    python run_ner.py --train_data_file data/nested/train.json --dev_data_file data/nested/dev.json \
        --label_file data/nested/labels.txt --pretrained_model_name_or_path data/bert-tiny-zh --head global_pointer
    torchrun --nproc_per_node=2 run_ner.py …

Lines are `{"text": ["我", "们"], "label": ["O", "O"]}`, with a tag for each token, or `{"text": "…", "entities":
[{"start": 0, "end": 2, "type": "PER"}]}`, in characters of a text or tokens of a list, `end` exclusive. The label file
has one tag a line, or one type.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from loguru import logger

from bertorch import cli
from bertorch.config import NERConfig

if TYPE_CHECKING:
    from bertorch.data.dataset import Examples
    from bertorch.tasks.base import Task


def run(config: NERConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.tagged_sentences import read_tag_set
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.global_pointer_head import choose_decoding
    from bertorch.tasks.tagging import HEADS, TaggingTask, tagged_sentences
    from bertorch.training.folds import fit_folds

    name, head = config.pretrained_model_name_or_path, HEADS[config.head_name]
    if config.gives_head_rate and config.head_name == "linear":
        logger.warning("--crf_learning_rate is the rate of the CRF's head: without --use_crf it changes nothing")
    tags = read_tag_set(config.label_file, config.tag)
    read = partial(
        tagged_sentences, tags=tags, strict=config.constrain_crf, split=config.split, as_spans=head.reads_spans
    )
    tokenizer = load_tokenizer(name, max_seq_length=config.max_seq_length)
    train, dev = load_examples(config, tokenizer, read, read)

    def plan_task(seen: "Examples") -> "Callable[[], Task[Any]]":
        options: dict[str, Any] = {"constrain_training": config.constrain_crf}
        if head.reads_spans:
            options = {"head_size": config.head_size, "decoding": choose_decoding(config.decoding, seen)}
        return partial(
            TaggingTask.from_pretrained,
            name,
            tokenizer,
            tags,
            head=config.head_name,
            head_learning_rate=config.crf_learning_rate,
            split=config.split,
            max_seq_length=config.max_seq_length,
            **options,
        )

    fit_folds(config, plan_task, train, dev, tags.tags)


if __name__ == "__main__":
    cli.main(NERConfig, run, __doc__)
