"""How much memory is left."""

from tljax.core.host_memory import available_memory


def test_available_memory_is_plausible():
    assert 1 << 20 < available_memory() < 1 << 50
