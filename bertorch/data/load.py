"""From the files of a run to tokenised examples; with `--cache_dir` each file is tokenised once."""

from collections.abc import Callable
from functools import partial

from transformers import PreTrainedTokenizerBase

from bertorch.config import TrainingConfig
from bertorch.data.cache import open_dataset
from bertorch.data.dataset import Examples, split_off
from bertorch.data.several_files import SeveralFiles
from bertorch.data.teacher import TeacherRows


def load_examples(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Callable[..., Examples],
    dev: Callable[..., Examples],
) -> tuple[Examples, Examples | None]:
    """Training and dev examples; the latter from `--dev_data_file` or split off by `--dev_ratio`, None without either.

    Training examples have the rows of `--teacher`, if there is one.

    Args:
        train, dev: reading functions, of a task's file: path → examples, with everything else that the result depends
            on bound as keywords (`tokenizer`, `max_length` and `on_bad_line` are added here). They are the cache's
            key, so that no option can be forgotten there.

    Raises:
        UserError: a file, an option or the folder is at fault.
    """
    shared = {"tokenizer": tokenizer, "max_length": config.max_seq_length, "on_bad_line": config.on_bad_line}
    teacher = TeacherRows.of(config)  # its errors come before the long work
    files = [open_dataset(partial(train, **shared), path, config.cache_dir) for path in config.train_data_files]
    examples = files[0] if len(files) == 1 else SeveralFiles(config.train_data_files, files, config.mix_of_files)
    if teacher is not None:
        examples = teacher.beside(examples, config.train_data_file)
    if config.dev_ratio is not None:
        return split_off(examples, config.dev_ratio, seed=config.seed)
    if config.dev_data_file is None:
        return examples, None
    return examples, open_dataset(partial(dev, **shared), config.dev_data_file, config.cache_dir)
