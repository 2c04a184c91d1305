"""The commands of annotation tools: from their exports to entity lines, and back with `--reverse`."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loguru import logger
from typing_extensions import override

from bertorch.config import option
from bertorch.errors import UserError
from bertorch.files import refuse_existing, write_lines
from bertorch.prepare.annotated_texts import AnnotatedText, read_annotated_texts, types_of
from bertorch.prepare.brat import read_brat
from bertorch.prepare.brat_files import brat_files
from bertorch.prepare.command import FileCommand, RowsCommand, write
from bertorch.prepare.doccano import doccano_lines, read_doccano
from bertorch.prepare.label_studio import ANNOTATIONS, label_studio_lines, read_label_studio
from bertorch.prepare.offsets import OFFSETS


@dataclass(frozen=True, kw_only=True)
class _AnnotationCommand(RowsCommand):
    reverse: bool = option(
        False, help="from entity lines, such as predict writes, to what the tool imports, to correct them there"
    )
    offsets: str = option(
        "auto",
        choices=OFFSETS,
        help="what the tool's offsets count, which differs after an emoji; auto: found out, with --reverse as its "
        "current version does",
    )
    label_file: str | None = option(None, help="also write the types of the entities, a line each")

    def _types(self, lines: Sequence[AnnotatedText], source: str) -> list[str]:
        return [] if self.label_file is None else types_of(lines, source)

    def _write_labels(self, types: Iterable[str]) -> None:
        if self.label_file is not None:
            write(self.label_file, types)


@dataclass(frozen=True, kw_only=True)
class _AnnotationFileCommand(FileCommand, _AnnotationCommand):
    @abstractmethod
    def _read(self) -> list[AnnotatedText]:
        """The lines of an export."""

    @abstractmethod
    def _back(self, lines: Sequence[AnnotatedText]) -> Iterable[str]:
        """The lines of what the tool imports."""

    @override
    def run(self) -> None:
        lines = read_annotated_texts(self.input_file, on_bad_row=self.on_bad_row) if self.reverse else self._read()
        types = self._types(lines, self.input_file)
        write(self.output_file, self._back(lines) if self.reverse else map(AnnotatedText.format, lines))
        self._write_labels(types)


@dataclass(frozen=True, kw_only=True)
class Doccano(_AnnotationFileCommand):
    """Convert doccano's entities (JSONL or JSON) into entity lines, or back."""

    @override
    def _read(self) -> list[AnnotatedText]:
        return read_doccano(self.input_file, offsets=self.offsets, on_bad_row=self.on_bad_row)

    @override
    def _back(self, lines: Sequence[AnnotatedText]) -> Iterable[str]:
        return doccano_lines(lines, offsets=self.offsets)


@dataclass(frozen=True, kw_only=True)
class LabelStudio(_AnnotationFileCommand):
    """Convert Label Studio's entities (JSON or JSON-MIN) into entity lines, or back into tasks with predictions."""

    text_key: str = option("text", help="key of the text in the data of a task")
    annotations: str = option(
        ANNOTATIONS[0],
        choices=ANNOTATIONS,
        help="of several annotations of a task: the one updated last, the first one (for both, the ground truth if "
        "one is marked), or the entities of all",
    )
    from_name: str = option("label", help="with --reverse: name of <Labels> in the labelling configuration")
    to_name: str | None = option(
        None, help="name of <Text> in the labelling configuration, where tasks have several; text with --reverse"
    )
    model_version: str = option("bertorch", help="with --reverse: name of the predictions")

    @override
    def _read(self) -> list[AnnotatedText]:
        return read_label_studio(
            self.input_file,
            offsets=self.offsets,
            on_bad_row=self.on_bad_row,
            text_key=self.text_key,
            to_name=self.to_name,
            annotations=self.annotations,
        )

    @override
    def _back(self, lines: Sequence[AnnotatedText]) -> Iterable[str]:
        return label_studio_lines(
            lines,
            offsets=self.offsets,
            text_key=self.text_key,
            from_name=self.from_name,
            to_name=self.to_name or "text",
            model_version=self.model_version,
        )


@dataclass(frozen=True, kw_only=True)
class Brat(_AnnotationCommand):
    """Convert brat's documents (.txt and .ann) into entity lines, a line of text each, or back."""

    input_dir: str | None = option(None, help="the folder to read")
    output_file: str | None = option(None, help="the file to write")
    input_file: str | None = option(None, help="with --reverse: the file to read")
    output_dir: str | None = option(None, help="with --reverse: the folder to write")
    lines_per_document: int = option(
        50, minimum=1, help="with --reverse: of lines that do not name their document with the key document"
    )

    def __post_init__(self) -> None:
        forward, back = ("input_dir", "output_file"), ("input_file", "output_dir")
        needed, refused = (back, forward) if self.reverse else (forward, back)
        how = "with" if self.reverse else "without"
        for name in needed:
            if getattr(self, name) is None:
                raise UserError(f"expected --{needed[0]} and --{needed[1]} {how} --reverse, got no --{name}")
        for name in refused:
            if getattr(self, name) is not None:
                raise UserError(f"expected --{needed[0]} and --{needed[1]} {how} --reverse, got --{name}")

    @override
    def run(self) -> None:
        if self.input_dir is not None and self.output_file is not None:
            lines = read_brat(self.input_dir, offsets=self.offsets, on_bad_row=self.on_bad_row)
            types = self._types(lines, self.input_dir)
            write(self.output_file, map(AnnotatedText.format, lines))
            self._write_labels(types)
        elif self.input_file is not None and self.output_dir is not None:
            self._reverse(self.input_file, Path(self.output_dir))

    def _reverse(self, input_file: str, folder: Path) -> None:
        lines = read_annotated_texts(input_file, on_bad_row=self.on_bad_row)
        types = self._types(lines, input_file)
        stem = Path(input_file).stem
        files = brat_files(
            lines, source=input_file, offsets=self.offsets, stem=stem, lines_per_document=self.lines_per_document
        )
        paths = {str(folder / name): content for name, content in files.items()}
        refuse_existing([*paths, *self.outputs], overwrite=self.overwrite, inputs=self.inputs)
        for path, content in paths.items():
            write_lines(path, content)
        logger.info("{}: {} documents, {} lines", folder, len(paths) // 2, len(lines))
        self._write_labels(types)
