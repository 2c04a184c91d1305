r"""Training steps of a tagger with a linear head and with a CRF on it, on the same batches.

    python -m benchmarks.tagger_step
    python -m benchmarks.tagger_step --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file msra/train.json --label_file msra/labels.txt --json result.json

Both take the same optimisation steps (forward, backward, clipping, AdamW, schedule), turn by turn in one process.
"""

from functools import partial

from benchmarks.measuring import DATA, Contender, compare_steps, step_parser
from bertorch import distributed, log
from bertorch.data.readers import read_label_names
from bertorch.data.tagged_dataset import TaggedBatch, TaggedDataset
from bertorch.data.tagged_sentences import read_tagged_sentences
from bertorch.data.tags import TagSet
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.precision import Precision
from bertorch.tasks.base import Losses
from bertorch.tasks.tag_heads import SpanModel
from bertorch.tasks.tagging import HEADS


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    log.setup()
    parser = step_parser(__doc__, DATA / "ner" / "train.json", DATA / "ner" / "labels.txt")
    parser.add_argument("--tag", default="bios", help="the tag scheme")
    options = parser.parse_args()
    device = distributed.device()
    name = options.pretrained_model_name_or_path
    tags = TagSet(read_label_names(options.label_file), options.tag, options.label_file)
    sentences = read_tagged_sentences(options.train_data_file, tags)
    dataset = TaggedDataset.of(load_tokenizer(name), sentences, max_length=options.max_seq_length)
    contenders = {}
    for head in ("crf", "linear"):
        tagger = HEADS[head].from_pretrained(name, tags).to(device)
        contenders[head] = Contender(tagger, partial(_losses, tagger))
    compare_steps(options, dataset, contenders, Precision.resolve(options.precision, device))


def _losses(tagger: SpanModel, batch: TaggedBatch) -> Losses:
    return {"loss": tagger.loss(tagger(batch), batch)}


if __name__ == "__main__":
    main()
