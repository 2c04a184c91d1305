"""Turn published datasets into the forms that the scripts read: `python data/prepare.py --help`.

It is `python -m bertorch.prepare`, and also runs in a clone where bertorch is not installed: Python looks for modules
in this folder, not in the one above.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
runpy.run_module("bertorch.prepare", run_name="__main__")
