"""All defaults, as `tljax/settings/fields.py` has them, with their meaning.

python -m tljax.main --config configs/common.py --config.data.source=folder:PATH
"""

from tljax.settings.fields import get_config

__all__ = ["get_config"]
