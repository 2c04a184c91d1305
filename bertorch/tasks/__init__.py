"""The tasks: examples, head, loss, metric, prediction, report and card of each."""
