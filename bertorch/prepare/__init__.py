"""From the forms in which datasets are published to those of the scripts; `bertorch.prepare` is the command."""
