r"""Convert published datasets into the formats that the scripts read; check, split and de-duplicate such files.

    python data/prepare.py clue tnews --input_file train.json --output_file train.tsv --label_file labels.txt
    python data/prepare.py columns --input_file train.char.bmes --output_file train.json --to bios
    python data/prepare.py tags --input_file train.json --output_file train.bio.json --to bio
    python data/prepare.py csv --input_file all.csv --output_file all.tsv --columns review,label \
        --map_label 0=negative --map_label 1=positive
    python data/prepare.py doccano --input_file export.jsonl --output_file train.json --label_file types.txt
    python data/prepare.py doccano --reverse --input_file predicted.json --output_file to_correct.jsonl
    python data/prepare.py labels --input_file train.json dev.json --output_file labels.txt
    python data/prepare.py split --input_file all.tsv --output_dir parts --dev_ratio 0.1 --test_ratio 0.1
    python data/prepare.py dedupe --train_file train.tsv --dev_file dev.tsv --report_file report.json \
        --output_file train.clean.tsv

The formats are described in docs/data.en.md. A malformed line is named as path:line, and nothing is written then.
Existing files are replaced only with --overwrite.
"""

from collections.abc import Sequence

from bertorch import cli
from bertorch.errors import exit_on_user_error
from bertorch.files import refuse_existing
from bertorch.prepare.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; `SystemExit` with code 2 for a user error, without a traceback."""
    command = cli.parse_command(COMMANDS, argv, __doc__)
    with exit_on_user_error():
        refuse_existing(command.outputs, overwrite=command.overwrite, inputs=command.inputs)
        command.run()


if __name__ == "__main__":
    main()
