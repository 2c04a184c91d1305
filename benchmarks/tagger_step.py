r"""Training steps of a tagger with a linear head, with a CRF on it, and with a global pointer, on the same sentences.

    python -m benchmarks.tagger_step
    python -m benchmarks.tagger_step --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file msra/train.json --label_file msra/labels.txt --json result.json

All take the same optimisation steps (forward, backward, clipping, AdamW, schedule), turn by turn in one process.
"""

from functools import partial

from benchmarks.measuring import DATA, Contender, compare_steps, step_parser
from bertorch import distributed, log
from bertorch.data.span_dataset import tokenize_sentences
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.data.tagged_sentences import read_tag_set, read_tagged_sentences
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
    tags, tokenizer = read_tag_set(options.label_file, options.tag), load_tokenizer(name)
    contenders = {}
    for head in ("global_pointer", "crf", "linear"):
        settings = {"decoding": "flat"} if HEADS[head].reads_spans else {}
        tagger = HEADS[head].from_pretrained(name, tags, **settings).to(device)
        sentences = read_tagged_sentences(options.train_data_file, tags, as_spans=tagger.reads_spans)
        dataset = tokenize_sentences(tokenizer, sentences, max_length=options.max_seq_length)
        contenders[head] = Contender(tagger, partial(_losses, tagger), dataset=dataset)
    compare_steps(options, dataset, contenders, Precision.resolve(options.precision, device))


def _losses(tagger: SpanModel, batch: TaggedBatch) -> Losses:
    return {"loss": tagger.loss(tagger(batch), batch)}


if __name__ == "__main__":
    main()
