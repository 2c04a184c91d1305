import pytest

from bertorch.encoder import layouts
from tests.encoder import flash_stand_in


@pytest.fixture
def flash(monkeypatch):
    """Attention goes through PyTorch's flash attention, whose kernel has a stand-in on the CPU."""
    library = flash_stand_in.register()
    monkeypatch.setattr(layouts, "runs_flash", lambda *_: True)
    yield
    library._destroy()


@pytest.fixture
def groups(monkeypatch):
    """Attention cuts also the smallest block up."""
    monkeypatch.setattr(layouts, "SMALL_BLOCK", 0)
