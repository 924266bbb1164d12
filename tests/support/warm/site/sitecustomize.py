"""Make an interpreter started with `with_forks` of `running.py` fork its own commands too."""

import os
import sys

sys.executable = os.environ.get("IMPASTO_WARM_PYTHON", sys.executable)
