"""bertorch: fine-tuning of BERT-family encoders on packed batches."""

__version__ = "0.1.0"
