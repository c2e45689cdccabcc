#!/usr/bin/env bash
# Every test that belongs to a change. Installs what it needs and says what. Prints one closing line with counts.
set -uo pipefail
cd "$(dirname "$0")/.."
# As root also short runs of the core scenarios, those on a real Kubernetes among them, which is built once; SHEEPDOG_E2E=no leaves them out.
e2e=${SHEEPDOG_E2E:-$([ "$(id -u)" = 0 ] && echo yes || echo no)}
# No scenario begins later than so many seconds after the start.
most=${SHEEPDOG_E2E_BEGIN_WITHIN:-4500}
options=()
[ "$e2e" = no ] || options+=(--k8s)
scripts/setup.sh "${options[@]}" || exit 1
export PATH="$HOME/.cargo/bin:$PATH" CARGO_TERM_COLOR=never
# Nothing here is built twice, and what cargo keeps for that takes gigabytes.
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
# Sheep of the tests run on this file system, and make writes wait when it is nearly full.
room=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$room" -ge "${SHEEPDOG_TEST_ROOM:-30}" ] || echo "test: $room GiB are free here, and building and testing take up to 30: expect failures (scripts/test.sh looks at SHEEPDOG_TEST_ROOM)"
logs=target/test-logs
mkdir -p "$logs"
passed=0 failed=0 failures=

# name, command...: one step counts as one test unless its output counts for itself.
step() {
    local name=$1 start=$SECONDS
    shift
    printf '== %s\n' "$name"
    "$@" >"$logs/$name.log" 2>&1
    local rc=$?
    local counts
    counts=$(awk '/^test result:/ {p += $4; f += $6} /^e2e: [0-9]+ passed, / {p += $2; f += $4} END {print p + 0, f + 0}' "$logs/$name.log")
    local p=${counts% *} f=${counts#* }
    if [ "$p" = 0 ] && [ "$f" = 0 ]; then
        if [ $rc = 0 ]; then p=1; else f=1; fi
    elif [ $rc != 0 ] && [ "$f" = 0 ]; then
        f=1
    fi
    passed=$((passed + p)) failed=$((failed + f))
    printf '   %s passed, %s failed, %s s\n' "$p" "$f" $((SECONDS - start))
    if [ $rc != 0 ]; then
        # What failed stands somewhere in the middle of what many test programs print.
        if grep -q '^failures:$' "$logs/$name.log"; then
            awk '/^failures:$/ {on = 1} on {print} /^test result: FAILED/ {on = 0}' "$logs/$name.log" | tail -n 120
        else
            tail -n 60 "$logs/$name.log"
        fi
        failures+=$(sed -nE 's/^(test .*) \.\.\. FAILED$/   failed: \1/p' "$logs/$name.log")
    fi
}

step fmt cargo fmt --all --check
step clippy cargo clippy --profile ci --workspace --all-targets -- -D warnings
# Optimised (profile ci): simulated stores and real clusters run in the tests.
step tests cargo test --profile ci --workspace --no-fail-fast
step simulation target/ci/sheepdog-sim --seeds "${SHEEPDOG_SIM_SEEDS:-1000}" --failures 1000 --known sim/known_seeds.txt
if [ "$e2e" != no ]; then
    # The programs that tests alone do not build.
    step build cargo build --profile ci --workspace --bins
    step e2e target/ci/e2e --quick --again --begin-within $((most > SECONDS ? most - SECONDS : 0)) core
    grep -E '^e2e: left out|FAILED' "$logs/e2e.log"
else
    echo "== e2e: left out (as root: \`cargo xtask e2e core\`)"
fi
[ -z "$failures" ] || printf '%s\n' "$failures" # again, at the end: a log may be cut at its beginning
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
