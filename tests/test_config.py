from dataclasses import dataclass, fields

import pytest

from bertorch.config import TrainingConfig, option
from bertorch.errors import UserError


def test_save_best_model_needs_dev_data():
    with pytest.raises(UserError, match="--save_best_model compares dev metrics and needs --dev_data_file"):
        TrainingConfig(train_data_file="-", save_best_model=True)
    TrainingConfig(train_data_file="-", dev_data_file="-", save_best_model=True)


def test_a_script_may_change_a_default_and_add_options():
    """As SimCSE does with its one epoch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainingConfig):
        epochs: int = option(1, minimum=1, help="passes")
        margin: float = option(0.2, help="margin")

    config = Config(train_data_file="-")
    assert (config.epochs, config.margin, config.batch_size) == (1, 0.2, 32)
    assert len({item.name for item in fields(Config)}) == len(fields(Config)) == len(fields(TrainingConfig)) + 1


def test_every_option_has_a_help_text():
    assert all(item.metadata["help"] for item in fields(TrainingConfig))
