"""Folders of `sentence_transformers.CrossEncoder`: a classification model, and its settings beside it."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from bertorch.encoder.sentence_modules import well_formed
from bertorch.errors import UserError
from bertorch.files import read_record

_IDENTITY = "torch.nn.modules.linear.Identity"
# What a CrossEncoder may say of its only module; anything else could change its scores.
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("sequence-classification",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "logits"}},),
    "module_output_name": ("scores",),
    "do_lower_case": (False,),
}
_ANY_VALUE = {"unpad_inputs", "max_seq_length"}  # the latter is also the tokenizer's limit


def keep_raw_scores(config: PretrainedConfig) -> None:
    """Let `CrossEncoder` give the logits themselves; without it, a model with one logit gets a sigmoid."""
    config.sentence_transformers = {"activation_fn": _IDENTITY}  # from release 4 on
    config.sbert_ce_default_activation_function = _IDENTITY  # before


def is_cross_encoder(folder: str) -> bool:
    """Whether `CrossEncoder` saved a folder with a modules.json, which is then a folder of transformers as well.

    Raises:
        UserError: it has modules or settings under which the scores would not be the logits of that model.
    """
    with well_formed(folder):
        return _is_cross_encoder(folder)


def _is_cross_encoder(folder: str) -> bool:
    path = Path(folder) / "config_sentence_transformers.json"
    settings = _read(path)
    if settings.get("model_type") != "CrossEncoder":
        return False
    if name := settings.get("default_prompt_name"):
        raise UserError(f"{path}: expected a CrossEncoder without a prompt, got default_prompt_name {name!r}")
    modules = _read(Path(folder) / "modules.json", list)
    if [(each.get("path"), str(each.get("type")).rpartition(".")[2]) for each in modules] != [("", "Transformer")]:
        got = ", ".join(str(each.get("type")) for each in modules)
        raise UserError(f"{folder}/modules.json: expected a CrossEncoder of one Transformer, got {got or 'nothing'}")
    for name, value in _read(Path(folder) / "sentence_bert_config.json").items():
        if name not in _ANY_VALUE and value is not None and value not in _SETTINGS.get(name, ()):
            expected = f"{folder}/sentence_bert_config.json: expected settings of a CrossEncoder that can be opened"
            raise UserError(f"{expected}, got {name}: {value!r}")
    return True


def _read(path: Path, parse: Any = dict) -> Any:
    remedy = "save the model again, or download the file again"
    found = read_record(path, parse, expected="settings of sentence-transformers", remedy=remedy)
    return parse() if found is None else found
