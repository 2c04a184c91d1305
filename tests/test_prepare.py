"""The command as a whole: on hand-written files, and on the published ones where they are.

`BERTORCH_DATASETS` names a folder with the published files under `raw/`, and beside it what they have to become:
`ner/*/*.json`, `TNEWS/*`. None of them is in this repository.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from bertorch import cli, predict
from bertorch.data.readers import read_label_names
from bertorch.data.tagged_sentences import read_tag_set, read_tagged_sentences
from bertorch.prepare.__main__ import main
from bertorch.prepare.commands import COMMANDS
from tests.conftest import ANNOTATIONS, NER, REVIEWS, ROOT, TOPICS, run_script

BMES = "我 S-PER\n在 O\n北 B-LOC\n京 E-LOC\n\n好 O\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in.bmes").write_text(BMES)
    return tmp_path


def failure(log_lines, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 2
    return log_lines[-1]


def test_columns_and_tags(folder):
    main(f"columns --input_file {folder}/in.bmes --output_file {folder}/bios.json".split())
    first, second = (folder / "bios.json").read_text().splitlines()
    assert first == '{"text": ["我", "在", "北", "京"], "label": ["S-PER", "O", "B-LOC", "I-LOC"]}'
    assert second == '{"text": ["好"], "label": ["O"]}'
    main(f"tags --input_file {folder}/bios.json --output_file {folder}/bmes.json --to bmes --strict".split())
    assert json.loads((folder / "bmes.json").read_text().splitlines()[0])["label"] == "S-PER O B-LOC E-LOC".split()  # noqa: SIM905
    main(f"labels --input_file {folder}/bios.json {folder}/bmes.json --output_file {folder}/labels.txt".split())
    assert read_label_names(str(folder / "labels.txt")) == ["O", "B-LOC", "E-LOC", "I-LOC", "S-PER"]


def test_clue_with_its_label_file(folder):
    line = {"sentence1": "甲", "sentence2": "乙", "label": "neutral"}
    (folder / "in.json").write_text(json.dumps(line) + "\n")
    main(f"clue ocnli --input_file {folder}/in.json --output_file {folder}/a --label_file {folder}/b".split())
    assert (folder / "a").read_text() == "甲\t乙\tneutral\n"
    assert (folder / "b").read_text() == "entailment\nneutral\ncontradiction\n"
    main(f"clue ocnli --input_file {folder}/in.json --output_file {folder}/c --unlabelled".split())
    assert (folder / "c").read_text() == "甲\t乙\n"


def test_csv(folder):
    (folder / "in.csv").write_text("label,review\n1,好\n0,差\n")
    options = "--columns review,label --map_label 0=negative --map_label 1=positive"
    main(f"csv --input_file {folder}/in.csv --output_file {folder}/out.tsv {options}".split())
    assert (folder / "out.tsv").read_text() == "好\tpositive\n差\tnegative\n"


def test_the_labels_of_the_sample_data(folder):
    """The label files of the repository are those that the command collects."""
    main(["labels", "--input_file", str(REVIEWS / "train.txt"), "--output_file", str(folder / "reviews")])
    assert (folder / "reviews").read_bytes() == (REVIEWS / "labels.txt").read_bytes()
    main(["labels", "--input_file", str(NER / "train.json"), "--output_file", str(folder / "ner")])
    assert set(read_label_names(str(folder / "ner"))) == set(read_label_names(str(NER / "labels.txt")))


def test_several_labels(folder, log_lines):
    """Also examples without any; the label file of the sample has another order."""
    train, separator = str(TOPICS / "train.txt"), ["--label_separator", ","]
    main(["labels", "--input_file", train, "--output_file", str(folder / "labels"), *separator])
    assert set(read_label_names(str(folder / "labels"))) == set(read_label_names(str(TOPICS / "labels.txt")))
    files = ["--train_file", train, "--dev_file", str(TOPICS / "dev.txt"), "--output_file", str(folder / "clean")]
    assert "expected no empty column (as in the first line), got" in failure(log_lines, "dedupe", *files)
    main(["dedupe", *files, *separator])
    assert (folder / "clean").read_bytes() == (TOPICS / "train.txt").read_bytes()
    main(["split", "--input_file", train, "--output_dir", str(folder / "parts"), *separator])
    parts = [(folder / "parts" / f"{name}.txt").read_text().splitlines() for name in ("train", "dev")]
    assert sorted(parts[0] + parts[1]) == sorted((TOPICS / "train.txt").read_text().splitlines())


def test_the_labels_of_entities_are_their_types(folder, log_lines):
    """One is enough, as for training; beside lines with entities, tags give their types too."""
    tagged, out = '{"text": ["a", "b"], "label": ["B-PER", "O"]}\n', folder / "out"

    def entity(type_):
        return f'{{"text": "ab", "entities": [{{"start": 0, "end": 1, "type": "{type_}"}}]}}\n'

    def labels(content):
        (folder / "in.json").write_text(content)
        main(["labels", "--input_file", str(folder / "in.json"), "--output_file", str(out), "--overwrite"])
        return read_tag_set(str(out), "bio").types

    assert labels(entity("PER")) == ["PER"]
    assert labels(entity("LOC") + tagged) == labels(tagged + entity("LOC")) == ["LOC", "PER"]
    assert labels(tagged) == ["PER"]
    out.unlink()
    for content, expected in (
        (entity("LOC") + entity("B-cell"), "expected types that are no tags, as a label file has either, got 'B-cell'"),
        ('{"text": "ab", "entities": []}\n', "expected at least one type of entities, got none"),
        (entity("LOC") + tagged.replace("B-PER", "PER"), "expected tags such as B-PER beside lines with entities, got"),
    ):
        (folder / "in.json").write_text(content)
        message = failure(log_lines, "labels", "--input_file", folder / "in.json", "--output_file", out)
        assert message.startswith(f"{folder}/in.json: {expected}")
    assert not out.exists()


def test_split_then_dedupe(folder):
    lines = [f"text {number % 90}\t{number % 2}" for number in range(100)]
    (folder / "all.tsv").write_text("".join(f"{line}\n" for line in lines))
    main(f"split --input_file {folder}/all.tsv --output_dir {folder}/parts --dev_ratio 0.2 --test_ratio 0.1".split())
    parts = {name: (folder / "parts" / f"{name}.tsv").read_text().splitlines() for name in ("train", "dev", "test")}
    assert sorted(sum(parts.values(), [])) == sorted(lines)  # noqa: RUF017
    (folder / "train.tsv").write_text("".join(f"{line}\n" for line in parts["train"] + parts["dev"][:3]))
    files = f"--train_file {folder}/train.tsv --dev_file {folder}/parts/dev.tsv --test_file {folder}/parts/test.tsv"
    main(f"dedupe {files} --output_file {folder}/clean.tsv --report_file {folder}/report.json".split())
    assert (folder / "clean.tsv").read_text().splitlines() == list(dict.fromkeys(parts["train"]))
    report = json.loads((folder / "report.json").read_text())
    assert [shared["lines"]["train"] for shared in report["shared"][:2]] == [3, 0]


def test_nothing_is_replaced_unasked(folder, log_lines):
    out = folder / "out.json"
    out.write_text("mine")
    columns = ["columns", "--input_file", folder / "in.bmes", "--output_file", out]
    assert failure(log_lines, *columns).startswith(f"{out}: expected no file of this name, got one")
    assert out.read_text() == "mine"
    main([*map(str, columns), "--overwrite"])
    assert out.read_text() != "mine"
    (folder / "dev.bmes").touch()
    split = ["split", "--input_file", folder / "in.bmes", "--output_dir", folder]
    assert failure(log_lines, *split).startswith(f"{folder}/dev.bmes: expected no file of this name")
    assert not (folder / "train.bmes").exists()


def test_an_input_is_never_the_output(folder, log_lines):
    data = folder / "train.tsv"
    data.write_text("".join(f"text {number}\t{number % 2}\n" for number in range(20)))
    before = data.read_text()
    for command in (
        ["split", "--input_file", data, "--output_dir", folder],
        ["labels", "--input_file", data, "--output_file", data],
        ["dedupe", "--train_file", data, "--report_file", data],
    ):
        assert "expected another file for the output, got one that is read" in failure(
            log_lines, *command, "--overwrite"
        )
        assert data.read_text() == before


def test_a_part_of_an_earlier_split_is_told(folder, log_lines):
    (folder / "all.tsv").write_text("".join(f"text {number}\t{number % 2}\n" for number in range(20)))
    split = f"split --input_file {folder}/all.tsv --output_dir {folder}/parts".split()
    main([*split, "--test_ratio", "0.1"])
    main([*split, "--seed", "2", "--overwrite"])
    assert log_lines[-1].startswith(f"{folder}/parts/test.tsv is not of this split")


def test_files_of_an_example_have_as_many_texts(folder, log_lines):
    """A pair with a label and one without have different columns of texts, unless they are said."""
    (folder / "train.tsv").write_text("".join(f"q{number}\ta{number}\t{number % 2}\n" for number in range(20)))
    (folder / "test.tsv").write_text("".join(f"q{number}\ta{number}\n" for number in range(5)))
    dedupe = f"dedupe --train_file {folder}/train.tsv --test_file {folder}/test.tsv".split()
    assert "expected as many columns of texts in each file, got 2 in train, 1 in test" in failure(log_lines, *dedupe)
    main([*dedupe, "--texts", "2"])
    assert "train and test: 5 of the 5 lines of test are also in train" in log_lines[-1]


def test_texts_that_are_taken_for_labels_are_told(folder, log_lines):
    (folder / "pairs.tsv").write_text("".join(f"q{number // 3}\ta{number}\n" for number in range(30)))
    dedupe = f"dedupe --train_file {folder}/pairs.tsv".split()
    main(dedupe)
    assert (
        "nearly all of the last columns are different; if they are texts, without labels, say --texts 2"
        in (log_lines[0])
    )
    log_lines.clear()
    main([*dedupe, "--texts", "2"])
    assert len(log_lines) == 1


def test_nothing_is_written_from_a_malformed_file(folder, log_lines):
    (folder / "bad.bmes").write_text("我 O\n们\n")
    message = failure(log_lines, "columns", "--input_file", folder / "bad.bmes", "--output_file", folder / "out")
    assert f"{folder}/bad.bmes:2: expected a token, a space or a tab, and its tag" in message
    assert message.endswith("Fix them in the file; nothing was written.")
    assert not (folder / "out").exists()
    one = folder / "one.txt"
    one.write_text("a\tb\n")
    message = failure(log_lines, "labels", "--input_file", one, "--output_file", folder / "out")
    assert message == f"{one}: expected at least two labels, got ['b']"
    one.write_text("a\tb\nc\td\x01\n")
    message = failure(log_lines, "labels", "--input_file", one, "--output_file", folder / "out")
    assert message == f"{one}: expected labels without control characters, got 'd\\x01'"


def test_doccano_there_and_back(folder, log_lines):
    """What comes back from our lines is the export but for comments."""
    ours, back = folder / "ours.json", folder / "back.jsonl"
    sample = ANNOTATIONS / "doccano.jsonl"
    types = folder / "types"
    main(f"doccano --input_file {sample} --output_file {ours} --label_file {types}".split())
    assert read_label_names(str(types)) == ["LOC", "ORG", "PER"]
    assert read_tag_set(str(types), "bio").types == ["LOC", "ORG", "PER"]
    main(f"doccano --reverse --input_file {ours} --output_file {back}".split())
    expected = [json.loads(line) for line in sample.read_text().splitlines()]
    assert [json.loads(line) | {"Comments": []} for line in back.read_text().splitlines()] == expected
    assert failure(log_lines, "doccano", "--reverse", "--input_file", ours, "--output_file", back).startswith(
        f"{back}: expected no file of this name, got one"
    )
    empty = folder / "empty.json"
    empty.write_text('{"text": "a", "entities": []}\n')
    command = ["doccano", "--reverse", "--input_file", empty, "--output_file", folder / "new", "--label_file"]
    message = failure(log_lines, *command, folder / "types.2")
    assert message == (f"{empty}: expected entities, whose types are the labels, got none; leave out --label_file")
    assert not (folder / "new").exists()


def test_our_lines_are_what_training_reads(folder):
    """Also what it does not need: an id, and where a line is from."""
    out = [folder / name for name in ("doccano", "label_studio", "brat")]
    types = folder / "types"
    main(f"doccano --input_file {ANNOTATIONS}/doccano.jsonl --output_file {out[0]} --label_file {types}".split())
    main(f"label_studio --input_file {ANNOTATIONS}/label_studio.json --output_file {out[1]}".split())
    main(f"brat --input_dir {ANNOTATIONS}/brat --output_file {out[2]}".split())
    tags = read_tag_set(str(types), "bio")
    for path, count in zip(out, (6, 4, 4), strict=True):
        read = read_tagged_sentences(str(path), tags, as_spans=True)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(read) == count
        assert list(read.tokens) == [list(line["text"]) for line in lines]
        found = [[(*map(int, span[:2]), tags.types[span[2]]) for span in spans] for spans in read.spans]
        expected = [[(each["start"], each["end"], each["type"]) for each in line["entities"]] for line in lines]
        assert [sorted(each) for each in found] == [sorted(each) for each in expected]


@pytest.mark.slow
def test_predictions_are_corrected_in_a_tool_and_come_back(folders, folder):
    """1,000 sentences, many with an emoji, that a tagger has tagged; every one is accepted as it is."""
    lines = (NER / "train.json").read_text().splitlines()
    sentences = ["".join(json.loads(line)["text"]) for line in lines]
    texts = [("😀" * (number % 3)) + sentences[number % len(sentences)] for number in range(1000)]
    (folder / "texts.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"model_dir": str(folders["ner"]), "input_file": str(folder / "texts.json")}
    predict.run(predict.PredictConfig(**options, output_file=str(folder / "predicted.json")))
    expected = [json.loads(line) for line in (folder / "predicted.json").read_text().splitlines()]
    spans = [[(each["start"], each["end"], each["type"]) for each in line["entities"]] for line in expected]
    assert [line["text"] for line in expected] == texts
    assert sum(map(len, spans)) > 1000

    reverse = f"--reverse --input_file {folder}/predicted.json"
    main(f"doccano {reverse} --output_file {folder}/doccano.jsonl".split())
    main(f"doccano --input_file {folder}/doccano.jsonl --output_file {folder}/1.json --offsets utf16".split())
    main(f"label_studio {reverse} --output_file {folder}/tasks.json".split())
    tasks = json.loads((folder / "tasks.json").read_text())
    (folder / "done.json").write_text(json.dumps([each | {"annotations": each["predictions"]} for each in tasks]))
    main(f"label_studio --input_file {folder}/done.json --output_file {folder}/2.json".split())
    main(f"brat {reverse} --output_dir {folder}/brat".split())
    main(f"brat --input_dir {folder}/brat --output_file {folder}/3.json".split())
    assert len(list((folder / "brat").iterdir())) == 40
    for number in (1, 2, 3):
        back = [json.loads(line) for line in (folder / f"{number}.json").read_text().splitlines()]
        assert [line["text"] for line in back] == texts
        assert [[(e["start"], e["end"], e["type"]) for e in line["entities"]] for line in back] == [
            sorted(each) for each in spans
        ]


def test_brat_there_and_back(folder, log_lines):
    ours, back = folder / "ours.json", folder / "back"
    main(f"brat --input_dir {ANNOTATIONS}/brat --output_file {ours} --label_file {folder}/types".split())
    main(f"brat --reverse --input_file {ours} --output_dir {back}".split())
    for name in ("news-1", "news-2"):
        expected = (ANNOTATIONS / "brat" / f"{name}.txt").read_text().replace("\n\n", "\n")
        assert (back / f"{name}.txt").read_text() == expected  # without the blank line
    main(f"brat --input_dir {back} --output_file {folder}/again.json".split())
    assert (folder / "again.json").read_bytes() == ours.read_bytes()
    message = failure(log_lines, "brat", "--reverse", "--input_file", ours, "--output_dir", back)
    assert message.startswith(f"{back}/news-1.txt: expected no file of this name, got one")
    main(f"brat --reverse --input_file {ours} --output_dir {back} --overwrite".split())
    ours.write_text('{"text": "a", "entities": [], "document": "../a"}\n')
    message = failure(log_lines, "brat", "--reverse", "--input_file", ours, "--output_dir", folder / "new")
    assert "expected the name of a document" in message
    assert not (folder / "new").exists()


def test_label_studio_there_and_back(folder):
    ours, tasks = folder / "ours.json", folder / "tasks.json"
    main(f"label_studio --input_file {ANNOTATIONS}/label_studio.json --output_file {ours}".split())
    names = "--text_key body --from_name ner --to_name words --model_version tiny"
    main(f"label_studio --reverse --input_file {ours} --output_file {tasks} {names}".split())
    done = [{"data": each["data"], "annotations": each["predictions"]} for each in json.loads(tasks.read_text())]
    assert {each["annotations"][0]["model_version"] for each in done} == {"tiny"}
    tasks.write_text(json.dumps(done))
    main(f"label_studio --input_file {tasks} --output_file {folder}/again.json --text_key body".split())
    assert (folder / "again.json").read_bytes() == ours.read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("brat --input_dir a", "expected --input_dir and --output_file without --reverse, got no --output_file"),
        ("brat --reverse --input_dir a --output_file b", "and --output_dir with --reverse, got no --input_file"),
        ("brat --input_dir a --output_file b --output_dir c", "without --reverse, got --output_dir"),
        ("brat --reverse --input_file a --output_dir b --input_dir c", "with --reverse, got --input_dir"),
        ("csv --input_file a --output_file b --columns a --map_label x", "expected VALUE=LABEL, got 'x'"),
        ("csv --input_file a --output_file b --columns a --map_label x= ", "expected VALUE=LABEL, got 'x='"),
        ("csv --input_file a --output_file b --columns a --map_label 1=a --map_label 1=b", "expected each value once"),
        ("split --input_file a --output_dir b --dev_ratio 1", "expected a share from 0 to less than 1, got 1"),
        ("split --input_file a --output_dir b --dev_ratio 0.6 --test_ratio 0.6", "less than 1 together, got 1.2"),
        ("clue tnew --input_file a --output_file b", "invalid choice: 'tnew'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_options(options, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options.split())
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_script_runs_from_a_clone(folder):
    """From any folder: Python itself would look for modules in `data`, not in the folder above."""
    out = folder / "out.json"
    ended = run_script("data/prepare.py", "columns", "--input_file", folder / "in.bmes", "--output_file", out)
    assert ended.stderr.endswith(f"{out}: 2 lines\n")
    assert (
        "expected no file"
        in run_script(
            "data/prepare.py", "columns", "--input_file", folder / "in.bmes", "--output_file", out, check=2
        ).stderr
    )
    help_text = subprocess.run(
        [sys.executable, ROOT / "data" / "prepare.py", "--help"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert help_text.startswith("usage: prepare.py")


def test_split_and_dedupe_by_a_column(folder, log_lines):
    lines = [f"p{number // 3}\th{number}\t{number % 3}" for number in range(60)]
    (folder / "all.tsv").write_text("".join(f"{line}\n" for line in lines))
    main(f"split --input_file {folder}/all.tsv --output_dir {folder}/parts --dev_ratio 0.2 --group_by 1".split())
    train, dev = ((folder / "parts" / f"{name}.tsv").read_text().splitlines() for name in ("train", "dev"))
    assert not {line.split("\t")[0] for line in train} & {line.split("\t")[0] for line in dev}
    assert (len(train), len(dev)) == (48, 12)
    (folder / "train.tsv").write_text("".join(f"{line}\n" for line in [*train, dev[0].replace("h", "new ")]))
    files = f"--train_file {folder}/train.tsv --dev_file {folder}/parts/dev.tsv --output_file {folder}/clean.tsv"
    main(f"dedupe {files} --group_by 1".split())
    assert (folder / "clean.tsv").read_text().splitlines() == train
    assert "train and dev: 3 of the 12 lines of dev are also in train (1 lines there)" in " ".join(log_lines)
    options = ["split", "--input_file", folder / "all.tsv", "--output_dir", folder / "more", "--group_by"]
    assert failure(log_lines, *options, 4) == f"{folder}/all.tsv: expected 4 or more columns (--group_by 4), got 3"


def test_bad_rows_of_csv(folder, log_lines):
    (folder / "in.csv").write_text("review,label\n好,1\n差\n")
    command = [
        "csv",
        "--input_file",
        folder / "in.csv",
        "--output_file",
        folder / "out.tsv",
        "--columns",
        "review,label",
    ]
    assert "3: expected 2 cells as in the header, got 1" in failure(log_lines, *command)
    main([*map(str, command), "--on_bad_row", "skip"])
    assert (folder / "out.tsv").read_text() == "好\t1\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_meaning_and_default_in_the_help(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for declared in fields(COMMANDS[name]):
        assert declared.metadata["help"]
        default = "(required)" if declared.default is MISSING else f"(default: {cli.default_text(declared)})"
        assert f"{declared.metadata['help']} {default}" in text


def test_the_commands_of_the_docs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "data").symlink_to(ROOT / "data")
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "data.md").read_text(), re.DOTALL | re.MULTILINE)
    for command in "".join(blocks).splitlines():
        python, script, *arguments = command.split()
        assert (python, script) == ("python", "data/prepare.py")
        main(arguments)
    tools = ["doccano.json", "label_studio.json", "brat.json", "for_brat", "for_doccano.jsonl", "for_label_studio.json"]
    others = ["dev.txt", "labels.txt", "matching.txt", "report.json", "test.txt", "train.bmes.json", "train.txt"]
    expected = sorted([*others, *tools, "types.txt"])
    assert sorted(file.name for file in (folder / "prepared").iterdir()) == expected
    assert sorted(file.name for file in (folder / "prepared" / "for_brat").iterdir()) == [
        f"news-{number}.{suffix}" for number in (1, 2) for suffix in ("ann", "txt")
    ]
    assert (folder / "prepared" / "types.txt").read_text() == "LOC\nORG\nPER\n"


@pytest.mark.parametrize("page", ["data.md", "data.en.md"])
def test_the_commands_of_the_docs_have_valid_options(page):
    """Also those that need files that are not here: their options are right."""
    commands = re.findall(r"^python data/prepare.py (.*?)(?: +#.*)?$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        cli.parse_command(COMMANDS, command.split())


DATASETS = os.environ.get("BERTORCH_DATASETS")
PUBLISHED = {
    "raw/weibo/train.all.bmes": "ner/weibo/train.json",
    "raw/weibo/dev.all.bmes": "ner/weibo/dev.json",
    "raw/weibo/test.all.bmes": "ner/weibo/test.json",
    "raw/resume/dev.char.bmes": "ner/resume/dev.json",
    "raw/ontonote4/dev.char.bmes": "ner/ontonote4/dev.json",
    "raw/msra/dev.ner": "ner/msra/dev.json",
    "raw/tnews/dev.json": "TNEWS/dev.tsv",
}


def dataset(*names: str) -> list[Path]:
    """Files of the datasets; the test is skipped without them."""
    if not DATASETS:
        pytest.skip("BERTORCH_DATASETS names no folder")
    files = [Path(DATASETS) / name for name in names]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")
    return files


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_files_become_ours_byte_for_byte(published, tmp_path):
    raw, ours = dataset(published, PUBLISHED[published])
    command = ["clue", "tnews"] if "tnews" in published else ["columns"]
    main([*command, "--input_file", str(raw), "--output_file", str(tmp_path / "out")])
    assert (tmp_path / "out").read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("name", ["weibo", "resume", "ontonote4", "msra"])
def test_published_tags_become_our_label_files(name, tmp_path):
    *files, labels = dataset(*(f"ner/{name}/{file}" for file in ("train.json", "dev.json", "test.json", "labels.txt")))
    main(["labels", "--input_file", *map(str, files), "--output_file", str(tmp_path / "out")])
    assert (tmp_path / "out").read_bytes() == labels.read_bytes()


def test_the_labels_of_tnews(tmp_path):
    raw, labels = dataset("raw/tnews/dev.json", "TNEWS/labels.txt")
    files = ["--output_file", str(tmp_path / "out"), "--label_file", str(tmp_path / "labels")]
    main(["clue", "tnews", "--input_file", str(raw), *files])
    assert (tmp_path / "labels").read_bytes() == labels.read_bytes()


@pytest.mark.parametrize(("name", "shared"), [("ChnSentiCorp", 338), ("TNEWS", 1099)])
def test_known_overlaps_of_published_splits(name, shared, tmp_path):
    train, dev = dataset(f"{name}/train.tsv", f"{name}/dev.tsv")
    report = tmp_path / "report.json"
    main(["dedupe", "--train_file", str(train), "--dev_file", str(dev), "--report_file", str(report)])
    assert json.loads(report.read_text())["shared"][0]["lines"]["dev"] == shared
