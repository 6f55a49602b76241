#!/bin/sh
# What is done with the crate in datapath/, on machines that have what it takes: a Rust compiler,
# from PATH or from where rustup puts it, or from $CARGO; an empty $CARGO is none.
#   tools/datapath.sh install VENV   build it and install it into a virtual environment
#   tools/datapath.sh wheel VENV     dist/qvpn_datapath-*.whl, the same bytes for the same source
#                                    and Rust
#   tools/datapath.sh lint           its style
#   tools/datapath.sh test           its own tests
#   tools/datapath.sh deny           the licences and the origin of what it needs
# Status 77 when this machine cannot, with one line that says why.
set -eu

cd "$(dirname "$0")/.."
action=$1
venv=$(realpath -m "${2-.venv}")

absent() { # WHY
	if [ "$action" = install ] && [ -e "$venv/.datapath" ]; then # of an older source
		"$venv/bin/python" -m pip uninstall -q -y qvpn-datapath
		rm -rf "$venv/.datapath" build/datapath
	fi
	if [ "$action" = wheel ]; then
		echo "the native datapath is not built: $1"
	else
		echo "the native datapath is left out: $1; the Python datapath serves"
	fi
	exit 77
}

cargo=${CARGO-$(command -v cargo || echo "${HOME-}/.cargo/bin/cargo")}
[ -x "$cargo" ] || absent "there is no cargo"
PATH=$(dirname "$cargo"):$PATH
command -v cc >/dev/null 2>&1 || absent "there is no C compiler"
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' datapath/Cargo.toml)
version=$(rustc --version | cut -d ' ' -f 2)
[ "$(printf '%s\n' "$needed" "$version" | sort -V | head -n 1)" = "$needed" ] ||
	absent "Rust $version is older than $needed"
# Otherwise what it is built against depends on which Python comes first in PATH.
export PYO3_PYTHON="$venv/bin/python"

# One profile for everything: AWS-LC, which takes most of the time, is compiled once.
case $action in
install)
	built=build/datapath
	rm -rf "$built"
	mkdir -p "$built"
	echo "building the native datapath"
	if ! "$venv/bin/maturin" build --quiet --release --locked \
		--manifest-path datapath/Cargo.toml --out "$built" >"$built/log" 2>&1; then
		tail -n 40 "$built/log" >&2
		echo "the native datapath does not build; \`make CARGO= ...\` goes on without it" >&2
		exit 1
	fi
	"$venv/bin/python" -m tools.packages.crates "$built"/*.whl
	"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-index \
		--force-reinstall "$built"/*.whl
	"$venv/bin/python" -c "import qvpn_datapath"
	;;
wheel)
	# Directories of the machine would be in messages of panics and in line tables.
	source=$(realpath datapath)
	export RUSTFLAGS="--remap-path-prefix=$source=/datapath \
--remap-path-prefix=${CARGO_HOME:-${HOME-}/.cargo}=/cargo"
	export CFLAGS="-ffile-prefix-map=$source=/datapath \
-ffile-prefix-map=${CARGO_HOME:-${HOME-}/.cargo}=/cargo"
	export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
	built=build/datapath-wheel
	rm -rf "$built"
	"$venv/bin/maturin" build --release --locked --manifest-path datapath/Cargo.toml \
		--target-dir datapath/target/wheel --out "$built" || {
		echo "the native datapath does not build; \`make CARGO= ...\` goes on without it" >&2
		exit 1
	}
	"$venv/bin/python" -m tools.packages.crates "$built"/*.whl
	mkdir -p dist
	rm -f dist/qvpn_datapath-*.whl
	mv "$built"/*.whl dist/
	;;
lint)
	cd datapath
	cargo fmt --check
	cargo clippy --quiet --release --locked --all-targets --all-features -- -D warnings
	;;
test)
	cd datapath
	exec cargo test --release --locked --tests
	;;
deny)
	cargo deny --version >/dev/null 2>&1 || {
		echo "there is no cargo-deny"
		exit 77
	}
	cd datapath
	exec cargo deny --offline --locked check licenses bans sources
	;;
*)
	echo "unknown: $action" >&2
	exit 2
	;;
esac
