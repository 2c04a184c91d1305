import pytest

from bertorch.models import attention
from tests.models import flash_stand_in


@pytest.fixture
def flash(monkeypatch):
    """Attention goes through PyTorch's flash attention, whose kernel has a stand-in on the CPU."""
    library = flash_stand_in.register()
    monkeypatch.setattr(attention, "runs_flash", lambda *_: True)
    yield
    library._destroy()
