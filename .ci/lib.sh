# shellcheck shell=bash
# What the scripts beside this file share. Sourced, never run.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
export CARGO_TARGET_DIR=$target

# A user's PATH often lacks the directories of nft, ip and nginx; rustup's and cargo's own may be missing in CI.
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin"

# Tools that are not in Debian, at the versions that the project is tested with.
cargo_nextest_version=0.9.143
cargo_deny_version=0.20.2

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: as it is for root, through sudo otherwise, never asking for a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "'$1' needs root: run this as root, or as a user whose sudo asks for no password"
    fi
}

# as_root_tests COMMAND...: cargo runs as the user, and the end-to-end tests, which make network namespaces, as root:
# without it cargo's own hook starts each test program by sudo.
as_root_tests() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
        return
    fi
    as_root true
    local triple
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    env "CARGO_TARGET_${triple}_RUNNER=sudo -n --preserve-env" "$@"
}

# step NAME COMMAND...: runs one command under a heading, with its time; the first that fails ends the script.
steps_done=()
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n==> %s\n' "$name"
    step_now=$name
    "$@" </dev/null
    step_now=
    steps_done+=("$(printf '%5ds  %s' $((SECONDS - started)) "$name")")
}

step_now=
report_steps() {
    local status=$?
    printf '\n==> summary\n'
    [ ${#steps_done[@]} = 0 ] || printf '   ok %s\n' "${steps_done[@]}"
    if [ -n "$step_now" ]; then
        printf 'FAILED         %s (exit %d)\n' "$step_now" "$status"
    fi
    printf '      %5ds  in all\n' "$SECONDS"
    return "$status"
}

# python_venv DIR REQUIREMENTS: a virtual environment under target/ that holds exactly these pinned packages.
python_venv() {
    local dir=$1 requirements=$2
    if ! cmp -s "$requirements" "$dir/installed.txt"; then
        rm -rf "$dir"
        mkdir -p "$(dirname "$dir")"
        python3 -m venv "$dir"
        "$dir/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
        cp "$requirements" "$dir/installed.txt"
    fi
}
