"""bertorch: fine-tuning of BERT-family encoders on packed batches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertorch.inference.load import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when asked for: the ground floor is in this package too, and needs no model
        from bertorch.inference.load import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
