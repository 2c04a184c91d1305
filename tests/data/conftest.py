import pytest


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A file that each example of a property rewrites."""
    return tmp_path_factory.mktemp("scratch") / "file.txt"
