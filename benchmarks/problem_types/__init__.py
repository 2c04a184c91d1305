"""What the problem types of `run_classifier.py`, and its options for unequal classes and long texts, give."""
