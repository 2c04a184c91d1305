r"""Training steps of a classifier: packed batches against the padded batches of transformers' own model.

    python -m benchmarks.classifier_step
    python -m benchmarks.classifier_step --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file ChnSentiCorp/train.tsv --label_file ChnSentiCorp/labels.txt --json result.json

Both take the same optimisation steps (forward, backward, clipping, AdamW, schedule) on the same examples in the same
order and precision, turn by turn in one process. Padded batches are as long as their longest sentence, as those of
transformers' collators.
"""

from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.measuring import DATA, Contender, compare_steps, step_parser
from bertorch import distributed, log
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset
from bertorch.data.readers import read_label_names, read_labelled_texts
from bertorch.encoder.attention import BlockLayout
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.pretrained import load_pretrained, load_tokenizer
from bertorch.precision import Precision
from bertorch.tasks.base import Losses


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    log.setup()
    options = step_parser(__doc__, DATA / "reviews" / "train.txt", DATA / "reviews" / "labels.txt").parse_args()
    device = distributed.device()
    labels = read_label_names(options.label_file)
    examples = read_labelled_texts(options.train_data_file, labels)
    name = options.pretrained_model_name_or_path
    dataset = Dataset.of_sequences(
        load_tokenizer(name), examples.columns, examples.labels, max_length=options.max_seq_length
    )
    packed = SequenceClassifier.from_pretrained(name, labels).to(device)
    padded = load_pretrained(AutoModelForSequenceClassification, name, num_labels=len(labels)).to(device)
    contenders = {
        "padded": Contender(padded, lambda batch: _losses(_padded_logits(padded, batch), batch)),
        "packed": Contender(packed, lambda batch: _losses(packed(batch), batch)),
    }
    compare_steps(options, dataset, contenders, Precision.resolve(options.precision, device))


def _losses(logits: Tensor, batch: PackedBatch) -> Losses:
    return {"loss": F.cross_entropy(logits, batch.labels, reduction="sum")}


def _padded_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    layout = BlockLayout.of(batch)
    padding = model.config.pad_token_id or 0
    return model(input_ids=layout.pad(batch.input_ids, padding), attention_mask=layout.mask.long()).logits


if __name__ == "__main__":
    main()
