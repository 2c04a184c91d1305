"""A folder of each script, trained once for all tests of inference: a few steps on the samples."""

from tests.conftest import MATCHING, NER, NLI, PARAPHRASES, REVIEWS, SENTENCES, STS, run_script
from tests.log_lines import command

RUNS = {
    "classifier": (
        "run_classifier.py",
        REVIEWS / "train.txt",
        REVIEWS / "dev.txt",
        {"label_file": REVIEWS / "labels.txt", "learning_rate": 5e-4},
    ),
    "pair classifier": (
        "run_classifier.py",
        NLI / "train.txt",
        NLI / "dev.txt",
        {"label_file": NLI / "labels.txt", "is_text_pair": True},
    ),
    "matching": (
        "run_sentencebert.py",
        MATCHING / "train.txt",
        MATCHING / "dev.txt",
        {"pooling_mode": "mean", "concat_multiply": True},
    ),
    "nli": (
        "run_sentencebert.py",
        NLI / "train.txt",
        NLI / "dev.txt",
        {"is_nli": True, "label_file": NLI / "labels.txt", "output_emb_size": 16},
    ),
    "simcse": ("run_simcse.py", SENTENCES, STS, {"pooling_mode": "cls"}),
    "batchneg": ("run_batchneg.py", PARAPHRASES, STS, {"pooling_mode": "linear", "output_emb_size": 16}),
    "ner": (
        "run_ner.py",
        NER / "train.json",
        NER / "dev.json",
        {"label_file": NER / "labels.txt", "learning_rate": 1e-3, "epochs": 4},
    ),
    "ner with a CRF": (
        "run_ner.py",
        NER / "train.json",
        NER / "dev.json",
        {
            "label_file": NER / "labels.txt",
            "use_crf": True,
            "crf_learning_rate": 5e-3,
            "learning_rate": 1e-3,
            "epochs": 3,
        },
    ),
}

# Of the training data: as many as it takes to learn something where a test needs that.
LINES = {
    "run_classifier.py": 96,
    "run_sentencebert.py": 64,
    "run_simcse.py": 64,
    "run_batchneg.py": 64,
    "run_ner.py": 128,
}


class Folders:
    """The folder of a run, made when a test first asks for it, and what it logged."""

    def __init__(self, base):
        self._base = base
        self._done = {}

    def __getitem__(self, name):
        return self.run(name)[0]

    def run(self, name):
        if name not in self._done:
            script, full, dev, settings = RUNS[name]
            folder = self._base / name.replace(" ", "_")
            train, lines = self._base / f"{folder.name}.txt", full.read_text().splitlines()[: LINES[script]]
            train.write_text("".join(line + "\n" for line in lines))
            settings = {"epochs": 1, "max_seq_length": 32, "keep_checkpoints": 0} | settings
            self._done[name] = folder, run_script(*command(script, train, dev, folder, **settings))
        return self._done[name]
