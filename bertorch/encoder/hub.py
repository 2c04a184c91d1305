"""Whether a model's name can be opened at all: a local folder, or a name of the hub that is cached or within reach.

transformers retries for most of a minute where there is no network, before it says so.
"""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from threading import Thread

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from loguru import logger

from bertorch.errors import UserError
from bertorch.files import reason

PATIENCE = 5.0  # seconds for an answer of the hub
WITHOUT_NETWORK = (
    "Name the folder of a model that is here, set HF_ENDPOINT to a mirror of the hub, or copy the hub's cache from "
    "elsewhere and set HF_HUB_OFFLINE=1"
)


def require_found(name: str, expected: str) -> None:
    """Check a name that is no local path; `expected` begins the error.

    A model of the hub's cache is taken from there if the hub cannot be reached.

    Raises:
        UserError: it is no name of the hub, or neither in the cache nor within reach.
    """
    missing = f"{expected}, got no folder of this name{_similar(Path(name))}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(missing) from error
    is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    obstacle = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else _obstacle()
    if obstacle is not None and not is_cached:
        raise UserError(f"{missing}, none in the hub's cache, and {obstacle}. {WITHOUT_NETWORK}")
    if obstacle is not None and not constants.is_offline_mode():
        logger.warning("{}: {}; the model is taken from the hub's cache", name, obstacle)
        constants.HF_HUB_OFFLINE = True


def _similar(path: Path) -> str:
    folders = [folder.name for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
    return "".join(f" (is it {path.with_name(found)}?)" for found in get_close_matches(path.name, folders, n=1))


@cache
def _obstacle() -> str | None:
    """Why the hub cannot be reached, None if it can."""
    found = [f"{constants.ENDPOINT} did not answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:  # noqa: BLE001 - of whatever library the hub's client uses
            found[:] = [f"{constants.ENDPOINT} cannot be reached ({reason(error)})"]
        else:
            found.clear()

    thread = Thread(target=ask, daemon=True)  # no timeout covers the look-up of the address
    thread.start()
    thread.join(PATIENCE)
    return next(iter(found), None)
