#!/usr/bin/env bash
# Fetches one object with the cache's own fetcher and with whatever of curl, aria2c and s5cmd is on PATH,
# one after the other in the same minute, and prints wall seconds, CPU seconds and peak memory of each.
# The cache verifies sha256 and syncs to disk; the others do neither. The floor is what no client can be faster
# than: a copy on this disk, synced and read back for its sha256.
#
#   bench/fetch.sh                                     2 GiB from bench/origin on this machine
#   SIZE=256M RATE=50000000 DELAY=30ms bench/fetch.sh  smaller, from an origin that is slow and far
#   S3_ENDPOINT=http://127.0.0.1:7070 S3_URI=s3://bucket/object bench/fetch.sh
#                                                      an object that is there, credentials from AWS_*;
#                                                      OBJECT=/its/file on this machine adds the floor
# ROUNDS (default 3) repeats all; WORK is where the bytes go (default: a new directory in TMPDIR).
set -euo pipefail
cd "$(dirname "$0")/.."
size=${SIZE:-2G} rounds=${ROUNDS:-3}
command -v /usr/bin/time >/dev/null || { echo "fetch.sh: needs GNU time at /usr/bin/time" >&2; exit 2; }

work=$(mktemp -d "${WORK:-${TMPDIR:-/tmp}}/bench-fetch.XXXXXX")
origin=
finish() {
	[ -z "$origin" ] || { kill "$origin" 2>/dev/null && wait "$origin" 2>/dev/null; } || true
	rm -rf "$work"
}
trap finish EXIT
mkdir "$work/www" "$work/out"
CGO_ENABLED=0 go build -o "$work/" ./bench/fetch ./bench/origin

if [ -n "${S3_URI:-}" ]; then
	: "${S3_ENDPOINT:?name the endpoint of $S3_URI}"
	source=$S3_URI url= object=${OBJECT:-}
else
	head -c "$size" /dev/urandom >"$work/www/object"
	sum=$(sha256sum <"$work/www/object") # also brings the file into the page cache
	"$work/origin" -dir "$work/www" -rate "${RATE:-0}" -delay "${DELAY:-0s}" >"$work/address" &
	origin=$!
	for _ in $(seq 50); do [ -s "$work/address" ] && break; sleep 0.1; done
	object=$work/www/object
	url=$(cat "$work/address")/object
	[ "$url" != /object ] || { echo "fetch.sh: the origin did not start" >&2; exit 1; }
	source="$url#sha256=${sum%% *}"
fi

measure() { # name command...
	local name=$1
	shift
	rm -rf "$work/out" && mkdir "$work/out"
	if /usr/bin/time -v -o "$work/time" "$@" >"$work/log" 2>&1; then
		awk -v name="$name" '
			/Elapsed/ { n = split($NF, t, ":"); wall = 0; for (i = 1; i <= n; i++) wall = wall * 60 + t[i] }
			/User time/ { user = $NF } /System time/ { sys = $NF } /Maximum resident/ { rss = $NF / 1024 }
			END { printf "%-10s %8.2f s wall %8.2f s CPU %8.1f MiB peak\n", name, wall, user + sys, rss }' "$work/time"
	else
		printf '%-10s failed: %s\n' "$name" "$(tail -n 1 "$work/log")"
	fi
}

digest=(openssl dgst -sha256) # with the CPU's instructions, as the cache does; coreutils may be built without
command -v openssl >/dev/null || digest=(sha256sum)
for _ in $(seq "$rounds"); do
	[ -z "$object" ] || measure floor bash -c 'cp "$1" "$2" && sync "$2" && "${@:3}" "$2"' - "$object" "$work/out/object" "${digest[@]}"
	measure gpu-agent "$work/fetch" -root "$work/out" ${S3_URI:+-endpoint "$S3_ENDPOINT"} "$source"
	if [ -n "$url" ]; then
		! command -v curl >/dev/null || measure curl curl -sSf -o "$work/out/object" "$url"
		! command -v aria2c >/dev/null || measure aria2c aria2c -q -x 16 -s 16 -k 16M --file-allocation=falloc -d "$work/out" -o object "$url"
	else
		! command -v s5cmd >/dev/null || measure s5cmd s5cmd --endpoint-url "$S3_ENDPOINT" cp "$source" "$work/out/object"
	fi
done
