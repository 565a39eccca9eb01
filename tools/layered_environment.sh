#!/usr/bin/env bash
# An environment on top of another: it sees the other's packages, and holds its own above them.
#   tools/layered_environment.sh BASE_PYTHON FOLDER PACKAGE...
# So an extra is tested without compiling glm4 again, and without changing the versions that other tests run with.
set -euo pipefail
base=$1 folder=$2
shift 2
[ -x "$folder/bin/python" ] || "$base" -m venv "$folder"
below=$("$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# addsitedir, unlike a plain line, reads the .pth files below too: glm4 itself is installed by one.
echo "import site; site.addsitedir('$below')" >"$own/layer.pth"
"$folder/bin/python" -m pip install --quiet "$@"
