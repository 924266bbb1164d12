#!/bin/sh
# Finds a Python of 3.11 or later and passes all arguments to start.py.
here=$(dirname "$0")
for python in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$python" >/dev/null 2>&1 &&
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        IMPASTO_LAUNCHER="$0" exec "$python" "$here/start.py" "$@"
    fi
done
echo "Impasto needs Python 3.11 or later, and none was found. Install it from python.org or with your system's packages." >&2
exit 1
