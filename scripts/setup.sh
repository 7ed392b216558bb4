# Sourced by the other scripts: a virtual environment if none is active, and what is missing in it.
# Costs nothing when it has been done before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi

requirements=${REQUIREMENTS:-requirements.txt}
stamp="$(python -c 'import sys; print(sys.prefix)')/.srd-$(
  { pwd; cat "$requirements" pyproject.toml; } | sha256sum | cut -c1-16
)"
if [ ! -e "$stamp" ]; then
  echo "installing $requirements (once; PyTorch is large)" >&2
  python -m pip install --quiet --disable-pip-version-check -r "$requirements"
  touch "$stamp"
fi
