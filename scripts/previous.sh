#!/usr/bin/env bash
# Builds the program of the version before, for the tests that upgrade from it: once, into
# /var/cache/sinew-test/previous/sinew. Without it those tests are skipped and say so.
#
#   scripts/previous.sh [REVISION]     the version before is the default
set -euo pipefail
cd "$(dirname "$0")/.."

# The last commit that speaks version 1 of the guest agent's protocol.
revision="${1:-1a9d968}"
into=/var/cache/sinew-test/previous

say() { printf 'previous: %s\n' "$*"; }

if [ -x "$into/sinew" ] && [ "$(cat "$into/revision" 2>/dev/null)" = "$revision" ]; then
    say "ready ($revision)"
    exit 0
fi
tree="$(mktemp -d)"
trap 'git worktree remove --force "$tree/source"; rm -rf "$tree"' EXIT
say "building $revision; about ten minutes"
git worktree add --quiet --detach "$tree/source" "$revision"
CARGO_TARGET_DIR="$tree/target" cargo build --quiet --manifest-path "$tree/source/Cargo.toml" -p sinew
mkdir -p "$into"
strip -o "$into/sinew.new" "$tree/target/debug/sinew"
mv "$into/sinew.new" "$into/sinew"
printf '%s\n' "$revision" >"$into/revision"
say "ready ($revision)"
