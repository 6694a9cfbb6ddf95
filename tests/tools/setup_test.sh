#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Without root and with packages missing, the set-up scripts print the line that installs them, and end with 3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"

# Stands for a machine that lacks one package.
cat >"$folder/dpkg-query" <<'FAKE'
#!/bin/sh
for package; do :; done
[ "$package" = libeigen3-dev ] || printf installed
FAKE
chmod 755 "$folder/dpkg-query"

as_user=()
if ((EUID == 0)); then
  command -v setpriv >/dev/null || { echo "skipped: no setpriv to become an ordinary user with"; exit 77; }
  as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
  "${as_user[@]}" test -x tools/quickstart || { echo "skipped: an ordinary user cannot read this checkout"; exit 77; }
fi
for script in tools/quickstart tools/test; do
  code=0
  output=$(PATH=$folder:$PATH "${as_user[@]}" "$script" 2>&1) || code=$?
  [[ $code == 3 ]] || { echo "$script ended with $code, wanted 3: $output"; exit 1; }
  [[ $output == *"sudo apt-get install -y libeigen3-dev"* ]] || { echo "$script said: $output"; exit 1; }
done

# A folder that is no libtorch is refused by name.
code=0
output=$(SINKSCOPE_TORCH=$folder bash -c 'source tools/setup/common.sh && prepare_torch' 2>&1) || code=$?
[[ $code == 3 && $output == *"SINKSCOPE_TORCH is $folder"* ]] || { echo "a wrong SINKSCOPE_TORCH: $code $output"; exit 1; }
echo "set-up: refusals are as they should be"
