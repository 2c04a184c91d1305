import pytest

from bertorch.encoder import cpu_attention, encoder
from tests.encoder import flash_stand_in


@pytest.fixture
def flash(monkeypatch):
    """Attention goes through PyTorch's flash attention, whose kernel has a stand-in on the CPU."""
    library = flash_stand_in.register()
    monkeypatch.setattr(encoder, "runs_flash", lambda *_: True)
    yield
    library._destroy()


@pytest.fixture
def groups(monkeypatch):
    """Attention splits also the smallest block."""
    monkeypatch.setattr(cpu_attention, "SMALL_BLOCK", 0)
