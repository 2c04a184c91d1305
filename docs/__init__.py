"""The documentation, and the generator of its pages of options."""
