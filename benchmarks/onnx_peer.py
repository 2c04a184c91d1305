"""sentence-transformers with its ONNX backend, asked over pipes: it needs an older transformers than ours.

    python onnx_peer.py FOLDER BATCH_SIZE

imports nothing of this project, and runs in the environment of `make loaders`. A line of standard input is a list of
texts in JSON; their embeddings go into a file, whose name is the line of standard output.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Answer until standard input ends."""
    folder, batch_size = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    model = SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs={"file_name": "model.onnx"})
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "vectors.npy"
        for line in sys.stdin:
            np.save(file, model.encode(json.loads(line), batch_size=batch_size, show_progress_bar=False))
            print(file, file=answers, flush=True)


if __name__ == "__main__":
    main()
