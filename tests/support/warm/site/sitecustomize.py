"""Has an interpreter that is started with `with_forks` of `running.py` start forks in its turn."""

import os
import sys

sys.executable = os.environ.get("IMPASTO_WARM_PYTHON", sys.executable)
