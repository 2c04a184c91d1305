"""The command that started this process, as a user would type it again."""

import sys


def module() -> str | None:
    """The name of the module that `python -m` runs, None of a script; argparse does not know it before Python 3.14."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else str(spec.name.removesuffix(".__main__"))


def command() -> list[str]:
    """The words before the options: `python`, and the script, or `-m` and the module."""
    name = module()
    return ["python", sys.argv[0]] if name is None else ["python", "-m", name]


def arguments_again() -> list[str]:
    """The arguments of this command for one that goes on with it, which must not replace what is there."""
    return [argument for argument in sys.argv[1:] if argument != "--overwrite"]
