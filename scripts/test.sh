#!/bin/sh
# Run the tests, unless they all passed on exactly this tree and environment already: make's own rule, for a suite of
# minutes. Arguments for pytest, FORCE=1, or CI always run them.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/.tested

[ $# = 0 ] || exec .venv/bin/python -m pytest "$@"

# Content, not times: every file that git tracks or would, and the environment's own stamp.
state=$({
    cat .venv/.stamp
    git ls-files -z --cached --others --exclude-standard | sort -zu | xargs -0 sha256sum 2>&1 || :
} | sha256sum)
if [ -z "${FORCE:-}${CI:-}" ] && [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$state" ]; then
    echo "test: nothing has changed since all tests passed here on $(tail -n 1 "$stamp"); make test FORCE=1 runs them again"
    exit 0
fi
rm -f "$stamp"
# Three on two cores: tests of servers wait half of their time for processes to start and end.
.venv/bin/python -m pytest -n 3 --dist loadfile
printf '%s\n%s\n' "$state" "$(date)" >"$stamp"
