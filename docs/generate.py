"""Write the pages of all options, docs/options.md and docs/options.en.md, from the code: `python -m docs.generate`.

Every text of the Chinese page stands in docs/options.zh.json under the English one, so that a text that changes in the
code has no translation until someone writes it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from bertorch.cli import default_text, grouped_options, spellings
from bertorch.compare import CompareConfig
from bertorch.config import (
    GROUPS,
    BatchNegConfig,
    ClassifierConfig,
    InferenceConfig,
    LaunchedConfig,
    NERConfig,
    TrainingConfig,
)
from bertorch.encode import EncodeConfig
from bertorch.evaluate import EvaluateConfig
from bertorch.export import ExportConfig
from bertorch.label_issues import LabelIssuesConfig
from bertorch.mine import MineConfig
from bertorch.plot import PlotConfig
from bertorch.predict import PredictConfig
from bertorch.prepare.commands import COMMANDS
from run_sentencebert import SentenceBertConfig
from run_simcse import SimCSEConfig

FOLDER = Path(__file__).parent
TRANSLATIONS = FOLDER / "options.zh.json"
# Name → whether it is the Chinese page, and its links.
PAGES = {
    "options.en.md": (False, "[中文](options.md) · [Home](../README.en.md)"),
    "options.md": (True, "[English](options.en.md) · [首页](../README.md)"),
}

Translate = Callable[[str], str]
# Heading → config, and the config whose options have been listed above.
SECTIONS: dict[str, tuple[type, type | None]] = {
    "All training scripts": (TrainingConfig, None),
    "`run_classifier.py`": (ClassifierConfig, TrainingConfig),
    "`run_sentencebert.py`": (SentenceBertConfig, TrainingConfig),
    "`run_simcse.py`": (SimCSEConfig, TrainingConfig),
    "`run_batchneg.py`": (BatchNegConfig, TrainingConfig),
    "`run_ner.py`": (NERConfig, TrainingConfig),
    "`predict`, `evaluate`, `encode` and `mine`": (InferenceConfig, None),
    "`python -m bertorch.predict`": (PredictConfig, InferenceConfig),
    "`python -m bertorch.evaluate`": (EvaluateConfig, InferenceConfig),
    "`python -m bertorch.encode`": (EncodeConfig, InferenceConfig),
    "`python -m bertorch.mine`": (MineConfig, InferenceConfig),
    "`python -m bertorch.export`": (ExportConfig, LaunchedConfig),
    "`python -m bertorch.plot`": (PlotConfig, None),
    "`python -m bertorch.compare`": (CompareConfig, None),
    "`python -m bertorch.label_issues`": (LabelIssuesConfig, None),
    **{f"`python data/prepare.py {name}`": (config, None) for name, config in COMMANDS.items()},
}


def page(translate: Translate, links: str) -> str:
    """The whole page, in Markdown."""
    lines = [f"# {translate('Options')}", "", links, ""]
    lines += [translate("Generated from the code by `make docs`; `--help` of a script or command shows the same."), ""]
    for heading, (config, base) in SECTIONS.items():
        lines += [f"## {heading if heading.count('`') == 2 else translate(heading)}", ""]  # a command is not translated
        if base is not None:
            lines += [translate("Besides the options above:"), ""]
        lines += _tables(config, base, translate)
    return "\n".join(lines)


def _tables(config: type, base: type | None, translate: Translate) -> Iterator[str]:
    """A table for each group of options; options that are as in `base` are left out."""
    listed = {} if base is None else {declared.name: declared for declared in fields(base)}
    types_of = get_type_hints(config)
    titles = [translate(title) for title in ("option", "default", "values", "meaning")]
    for group, options in grouped_options(config).items():
        own = [each for each in options if listed.get(each.name) is not each]
        if not own:
            continue
        if group != GROUPS[0]:
            yield from (f"### {translate(group.capitalize())}", "")
        yield from (f"| {' | '.join(titles)} |", "|---|---|---|---|")
        for declared in own:
            names = ", ".join(f"`{name}`" for name in spellings(declared))
            default = default_text(declared)
            default = translate(default) if default in ("required", "none", "on", "off") else f"`{default}`"
            meaning = translate(declared.metadata["help"]).replace("|", "\\|")
            yield f"| {names} | {default} | {_values(declared, types_of[declared.name], translate)} | {meaning} |"
        yield ""


def _values(declared: Field[Any], hint: Any, translate: Translate) -> str:
    choices, minimum, maximum = (declared.metadata[key] for key in ("choices", "minimum", "maximum"))
    if choices is not None:
        return ", ".join(f"`{choice}`" for choice in choices)
    kind, *_ = get_args(hint) or [hint]
    bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", minimum), ("≤", maximum)) if bound is not None]
    return ", ".join([translate({bool: "flag", str: "text", int: "integer", float: "number"}[kind]), *bounds])


def pages(used: set[str] | None = None) -> dict[str, str]:
    """Name of each page → its text.

    Args:
        used: gets the English texts that a translation was looked up for.

    Raises:
        KeyError: an English text without a translation.
    """
    chinese = json.loads(TRANSLATIONS.read_text(encoding="utf-8"))

    def translate(text: str) -> str:
        if used is not None:
            used.add(text)
        return str(chinese[text])

    return {name: page(translate if is_chinese else str, links) for name, (is_chinese, links) in PAGES.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
