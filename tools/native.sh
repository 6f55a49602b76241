#!/bin/sh
# Builds the native datapath and puts it where a virtual environment imports it from.
#   tools/native.sh VENV
# Needs a Rust toolchain (datapath/Cargo.toml says which) and a C compiler.
set -eu

venv=$1
cargo=${CARGO:-cargo}
command -v "$cargo" >/dev/null 2>&1 || cargo=$HOME/.cargo/bin/cargo
if ! command -v "$cargo" >/dev/null 2>&1; then
	echo "no cargo: install a Rust toolchain (https://rustup.rs) to build the native datapath" >&2
	exit 1
fi
if ! command -v cc >/dev/null 2>&1; then
	echo "no C compiler: install one (package gcc) to build the native datapath" >&2
	exit 1
fi

here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/datapath/target}
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
rm -f "$site/qvpn_datapath.abi3.so" # of an older version, if this fails
"$cargo" build --quiet --release --locked --manifest-path "$here/datapath/Cargo.toml" \
	--target-dir "$target" --features python,pyo3/extension-module
# Moved into place: a running program may have the old one mapped.
cp "$target/release/libqvpn_datapath.so" "$site/.qvpn_datapath.new"
mv "$site/.qvpn_datapath.new" "$site/qvpn_datapath.abi3.so"
"$venv/bin/python" -c 'import qvpn_datapath'
