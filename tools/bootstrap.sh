#!/bin/sh
# Makes a checkout able to run: system programs, then a virtual environment from the lock.
# As root on a Debian-like system it installs what is missing; otherwise it says what that is.
#   tools/bootstrap.sh PYTHON VENV
set -eu

python=$1
venv=$2

missing=""
need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need "$python" python3
need ip iproute2
need nft nftables
need ping iputils-ping
need iperf3 iperf3
need ethtool ethtool
need openssl openssl
need nmap nmap
"$python" -c "import ensurepip, venv" >/dev/null 2>&1 || missing="$missing python3-venv"

if [ -n "$missing" ]; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "installing:$missing"
		log=$(mktemp)
		export DEBIAN_FRONTEND=noninteractive
		# shellcheck disable=SC2086 # a list of package names
		if ! { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
			tail -n 20 "$log" >&2
			rm -f "$log"
			echo "could not install:$missing" >&2
			exit 1
		fi
		rm -f "$log"
	else
		echo "missing:$missing (on Debian or Ubuntu: sudo apt-get install$missing)" >&2
		exit 1
	fi
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	echo "Python 3.11 or newer is needed; this is $("$python" --version)" >&2
	exit 1
}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing the locked Python packages"
"$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
