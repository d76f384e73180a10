#!/usr/bin/env bash
# Install what runs the Autobahn cases into the folder that is given:
#   FOLDER/kosoku   a venv with kosoku, which runs the suite's case files on Python 3
#   FOLDER/wstest   a Python 2.7 environment with the suite itself, where a Python 2.7 is found
# PYTHON chooses the Python 3; PYTHON2 the Python 2.7, which is looked for on PATH and in ~/.pyenv/versions otherwise.
set -euo pipefail

folder=$1
python3=${PYTHON:-python3}
pip_install=(-m pip install --quiet --quiet --disable-pip-version-check)

find_python2() {
    local python
    for python in "${PYTHON2:-}" python2.7 python2 "$HOME"/.pyenv/versions/2.7*/bin/python2.7; do
        if "$python" -c 'import sys, ssl, zlib; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then
            # A version manager's wrapper would follow the folder that it is called in.
            "$python" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

rm -rf "$folder/kosoku" "$folder/wstest"
"$python3" -m venv "$folder/kosoku"
"$folder/kosoku/bin/python" "${pip_install[@]}" kosoku==0.1.0

if python2=$(find_python2); then
    # The last release that makes an environment of Python 2.7.
    "$folder/kosoku/bin/python" "${pip_install[@]}" virtualenv==20.21.1
    "$folder/kosoku/bin/virtualenv" --quiet --no-periodic-update --python "$python2" "$folder/wstest"
    # Python 2.7 and its pip tell that they are old.
    PYTHONWARNINGS=ignore "$folder/wstest/bin/python" "${pip_install[@]}" autobahntestsuite==25.10.1
else
    echo "No Python 2.7 was found (PYTHON2 can name one): only kosoku will run the cases, not the suite itself" >&2
fi
