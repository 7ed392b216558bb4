# Sourced by the other scripts: a virtual environment if none is active, and what is missing in it.
# Costs nothing when it has been done before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi

requirements=${REQUIREMENTS:-requirements.txt}
prefix=$(python -c 'import sys; print(sys.prefix)')
stamp() { echo "$prefix/.srd-$(cat "$@" pyproject.toml | sha256sum | cut -c1-16)"; }
# An environment that several checkouts share imports the one that was installed last.
if [ ! -e "$(stamp "$requirements" requirements.txt)" ] || [ "$(cat "$prefix/.srd-checkout" 2>/dev/null)" != "$PWD" ]; then
  free=$(df -Pk "$prefix" "${TMPDIR:-/tmp}" | awk 'NR > 1 {print int($4 / 1048576)}' | sort -n | head -n 1)
  echo "installing $requirements (once; PyTorch is large: about 10 GB while installing, $free GB are free)" >&2
  if ! python -m pip install --quiet --disable-pip-version-check -r "$requirements"; then
    echo "error: installing $requirements failed, for the reason above; run this again to go on" >&2
    exit 2
  fi
  touch "$(stamp "$requirements" requirements.txt)" "$(stamp requirements.txt requirements.txt)"
  echo "$PWD" >"$prefix/.srd-checkout"
fi
