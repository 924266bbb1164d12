"""Record the golden losses again: python tests/golden/record_losses.py RUN_DIRECTORY

RUN_DIRECTORY is the folder left by the failing test (pytest prints its temporary folder).
"""

import json
import sys
from pathlib import Path

records = [
    json.loads(line)
    for line in Path(sys.argv[1], "metrics.jsonl").read_text(encoding="utf-8").splitlines()
]
losses = {
    name: [record[name] for record in records if name in record]
    for name in ("loss", "validation_loss")
}
environment = json.loads(Path(sys.argv[1], "environment.json").read_text(encoding="utf-8"))
Path(__file__).with_name("losses.json").write_text(
    json.dumps({"torch": environment["packages"]["torch"], "losses": losses}, indent=1) + "\n",
    encoding="utf-8",
)
