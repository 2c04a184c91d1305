"""The files of a saved folder by their names: those that a save may write, and those that would be loaded instead."""

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from loguru import logger

from bertorch.data.out_of_fold import OUT_OF_FOLD
from bertorch.files import ERRORS, PREDICTIONS, REPORT
from bertorch.training.drawn_examples import DRAWN
from bertorch.training.metrics_file import METRICS
from bertorch.training.model_card import CARD, is_foreign
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS

# Whatever transformers and sentence-transformers look for when they load a model: of another program, it is loaded in
# the place of ours, changes it, or is lost when we save.
_LOADED = re.compile(
    rf"({re.escape(WEIGHTS)}|{re.escape(SAFE_WEIGHTS)})(\.index\.json)?"
    r"|(pytorch_model|model)-\d+-of-\d+\.(bin|safetensors)"
    r"|adapter_(config\.json|model\.(bin|safetensors))"
    r"|(config|modules|sentence_bert_config|config_sentence_transformers)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json|chat_template\.jinja",
    re.ASCII,
)
_OF_RELEASES = re.compile(r"sentence_\w+_config\.json", re.ASCII)  # of older ones of sentence-transformers
_MODULE = re.compile(r"\d+_[A-Za-z]+/(config\.json|model\.safetensors|pytorch_model\.bin)", re.ASCII)
# What the tokenizers of encoders write, beside the above.
_VOCABULARIES = {
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "dict.txt", "entity_vocab.json"),
    *("spiece.model", "spm.model", "spm_char.model", "sentencepiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "emoji.json", "normalizer.json", "word_shape.json", "word_pronunciation.json"),
}


def is_known(name: str) -> bool:
    """Whether a save may have written a file of this name, relative to the folder."""
    known = name in {CARD, DRAWN, METRICS, OUT_OF_FOLD, REPORT, ERRORS, PREDICTIONS, *_VOCABULARIES}
    return known or any(pattern.fullmatch(name) is not None for pattern in (_LOADED, _MODULE))


def describes_model(name: str) -> bool:
    """Whether a file of this name, in the folder of a model or of a module, is a config or of a tokenizer."""
    is_weights = name.endswith((".bin", ".safetensors", ".index.json"))
    return name in _VOCABULARIES or (
        not is_weights and (_LOADED.fullmatch(name) or _OF_RELEASES.fullmatch(name)) is not None
    )


def loaded_files(folder: Path) -> set[str]:
    """The names of what libraries would load from a folder."""
    return {path.name for path in folder.iterdir() if _LOADED.fullmatch(path.name)} if folder.is_dir() else set()


def recorded_files(names: Collection[object], record: Path) -> set[str]:
    """Of the names in a record those that a save may have written; the others are logged, and left alone."""
    known = [name for name in names if isinstance(name, str) and is_known(name)]
    if len(known) < len(names):
        logger.warning("{}: ignores names of files that no save writes: {}", record, len(names) - len(known))
    return set(known)


def remove_saved(folder: Path, names: Collection[str]) -> None:
    """Remove files of an earlier save, unless somebody else wrote them, and then their folders if these are empty."""
    for path in (folder / name for name in names):
        is_behind_link = path.parent != folder and path.parent.is_symlink()
        if is_behind_link or is_foreign(path) or (path.is_dir() and not path.is_symlink()):
            continue
        path.unlink(missing_ok=True)
        with suppress(OSError):  # other files are in it
            path.parent.rmdir()
