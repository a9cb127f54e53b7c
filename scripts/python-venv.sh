#!/usr/bin/env bash
# Makes .venv, the Python environment of the test clients, from scripts/requirements.txt.
#
# Quick when it is there already. A file with the digest of the requirements is written last, so
# that an interrupted run is not taken for a finished one; a lock lets two runs wait for each other.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'venv: %s\n' "$*"; }

requirements=scripts/requirements.txt
wanted="$(sha256sum "$requirements" | cut -d' ' -f1)"

ready() {
    [ "$(cat .venv/requirements.sha256 2>/dev/null)" = "$wanted" ] &&
        .venv/bin/python -c '' 2>/dev/null
}

mkdir -p target
exec 9>target/python-venv.lock
flock 9

if ready; then
    say "ready"
    exit 0
fi

python="${PYTHON:-python3}"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null; then
        python=/usr/bin/python3
    else
        say "$python has no venv module: run scripts/setup.sh test as root, or apt-get install python3-venv" >&2
        exit 1
    fi
fi

say "making .venv with $("$python" --version) (about 30 s)"
rm -rf .venv
trap 'rm -rf .venv' ERR INT TERM
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --require-hashes --only-binary :all: -r "$requirements"
.venv/bin/python -c 'import anthropic; print("venv: anthropic", anthropic.__version__)'
# Written last: without it the next run starts again.
printf '%s\n' "$wanted" >.venv/requirements.sha256
say "ready"
