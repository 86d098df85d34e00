# Sourced by the scripts beside it. Goes to the root of the repository, and gives
#   ensure_venv EXTRA   make .venv and install streamkm[EXTRA] in it, unless that is done
#   $venv_python        the interpreter in it
# The variable PYTHON chooses the interpreter that a new .venv is made with.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv_python=$PWD/.venv/bin/python

# Prints the first interpreter that runs and is new enough.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "streamkm needs Python 3.11 or newer, and ${PYTHON:-python3} is not;" \
        "name another: PYTHON=/path/to/python3.11 $0" >&2
    return 1
}

# Prints a checksum of all that an installation depends on. When it changes, pip runs again.
installation_key() {
    # (The compilers too: the CPU kernel is built where there is one.)
    { echo "$PWD"; command -v c++ g++ clang++ || true; cat pyproject.toml constraints.txt streamkm/kernels/native/*; } | cksum
}

install_extra() {
    local extra=$1 key=$2 python
    # The marker is still there if an installation was cut short.
    if [[ -e .venv/installing ]] || ! "$venv_python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || return
        echo "Making .venv with $("$python" --version)" >&2
        "$python" -m venv --clear .venv || return
    fi
    echo "Installing streamkm[$extra] into .venv (about a minute the first time)" >&2
    touch .venv/installing
    "$venv_python" -m pip install -qq -c constraints.txt -e ".[$extra]" || return
    echo "$key" >".venv/installed-$extra"
    rm .venv/installing
}

ensure_venv() (
    extra=$1
    # Two scripts started at once must not both install. Without flock, nothing keeps them apart.
    if command -v flock >/dev/null; then flock 9; fi
    key=$(installation_key)
    for stamp in ".venv/installed-$extra" .venv/installed-bench .venv/installed-dev; do
        # dev holds every other extra but the peers and the fuzzer.
        if [[ $extra == bench && $stamp == *-dev ]]; then continue; fi
        if [[ $extra == fuzz && $stamp != *-fuzz ]]; then continue; fi
        if [[ ! -e .venv/installing && -x $venv_python && $(cat "$stamp" 2>/dev/null) == "$key" ]]; then
            return
        fi
    done
    install_extra "$extra" "$key" 9>&-
) 9<pyproject.toml
