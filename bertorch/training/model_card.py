"""The model card: a `README.md` in the saved folder that says what the model is, how it came about, how to load it.

References:
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    https://huggingface.co/docs/hub/model-cards
"""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from loguru import logger

import bertorch
from bertorch import distributed
from bertorch.config import TrainingConfig

CARD = "README.md"
# Only a file with this line is replaced.
_MARK = "<!-- written by bertorch, and replaced by its next save; a README.md without this line is left alone -->"
_TRANSFORMERS = 'from transformers import pipeline\n\nprint(pipeline("{task}", model={folder})({text}))'
_SENTENCE_TRANSFORMERS = (
    "from sentence_transformers import SentenceTransformer\n\nprint(SentenceTransformer({folder}).encode([{text}]))"
)
# How a model of each kind is loaded elsewhere.
_ELSEWHERE = {
    "text-classification": _TRANSFORMERS,
    "token-classification": _TRANSFORMERS,
    "sentence-similarity": _SENTENCE_TRANSFORMERS,
}
_HERE = {
    "text-classification": "predict([{text}])[0].label",
    "token-classification": "tag([{text}])[0]",
    "sentence-similarity": "encode([{text}])",
}
_TEXT, _SECOND_TEXT = "房间干净，早餐也丰富。", "早餐不错。"


class ModelCard:
    """The card of a run's weights, written beside them.

    Args:
        config: the run's options.
        pipeline_tag: what the model is for, by the name that the hub has for it.
        step: after which the weights are as they are.
        history: of each evaluation its step and its numbers.
        precision: of the arithmetic.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        pipeline_tag: str,
        step: int,
        history: Sequence[Mapping[str, Any]],
        precision: str,
    ) -> None:
        self._config = config
        self._pipeline_tag = pipeline_tag
        self._step = step
        self._history = history
        self._precision = precision

    def save_pretrained(self, save_directory: Any) -> None:
        """Write the card, unless the folder that the weights go to has a `README.md` of somebody else."""
        there = Path(self._config.saved_dir) / CARD
        if is_of_others(there):
            logger.info("{}: is not ours, so there is no model card", there)
            return
        (Path(save_directory) / CARD).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The card in Markdown, with the hub's metadata on top."""
        parts = [self._metadata(), _MARK, self._title(), self._use(), self._training(), self._metrics(), _versions()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self) -> str:
        base = self._config.pretrained_model_name_or_path
        is_on_hub = not Path(base).exists()
        return "\n".join(
            [
                "---",
                f"library_name: {'sentence-transformers' if self._embeds else 'transformers'}",
                f"pipeline_tag: {self._pipeline_tag}",
                *([f"base_model: {base}"] if is_on_hub else []),
                "tags:\n- bertorch",
                "---",
            ]
        )

    @property
    def _embeds(self) -> bool:
        return self._pipeline_tag == "sentence-similarity"

    def _title(self) -> str:
        base = Path(self._config.pretrained_model_name_or_path).name
        return f"# {base}, fine-tuned\n\nThese are the weights after step {self._step} of the run below."

    def _use(self) -> str:
        folder = json.dumps(self._config.saved_dir, ensure_ascii=False)  # with its quotes, also as Python has them
        text = text_elsewhere = repr(_TEXT)
        if getattr(self._config, "is_text_pair", False):
            text, text_elsewhere = repr((_TEXT, _SECOND_TEXT)), repr({"text": _TEXT, "text_pair": _SECOND_TEXT})
        elsewhere = _ELSEWHERE[self._pipeline_tag].format(task=self._pipeline_tag, folder=folder, text=text_elsewhere)
        crf = ""
        if getattr(self._config, "use_crf", False):
            crf = "\n\ntransformers does not know the CRF: it tags by the emissions alone."
        here = _HERE[self._pipeline_tag].format(text=text)
        return (
            f"## Use\n```python\nfrom bertorch import load\n\nprint(load({folder}).{here})\n```\n"
            f"Without bertorch:\n```python\n{elsewhere}\n```{crf}"
        )

    def _training(self) -> str:
        command = shlex.join(["python", *sys.argv])
        config = self._config
        data = f"Training data: `{config.train_data_file}`"
        if config.dev_data_file:
            data += f", dev data: `{config.dev_data_file}`"
        how = f"{config.batch_size} examples a batch each, {self._precision}, seed {config.seed}"
        return f"## Training\n```bash\n{command}\n```\n{distributed.world_size()} process(es), {how}. {data}."

    def _metrics(self) -> str:
        if not self._history:
            return ""
        names = [name for name in self._history[0] if name != "step"]
        rows = ["| step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        rows += [
            f"| {numbers['step']} | " + " | ".join(f"{numbers[name]:.5f}" for name in names) + " |"
            for numbers in self._history
        ]
        return "## Dev metrics\n" + "\n".join(rows)


def is_of_others(path: Path) -> bool:
    """Whether a file is there that may be called as the card is, and that somebody else has written."""
    return path.name == CARD and path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")


def _versions() -> str:
    device = distributed.device()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return (
        f"## Versions\nbertorch {bertorch.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}, {hardware}"
    )
