"""The error that a user can mend."""


class UserError(Exception):
    """A wrong option, file or checkpoint.

    The message says what was expected, what came, where, and what to do. A script prints it without a
    traceback and ends with exit code 2, as argparse does for a wrong command line.
    """
