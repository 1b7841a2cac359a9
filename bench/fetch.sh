#!/usr/bin/env bash
# Measures the cache's fetcher, beside whatever of curl, aria2c and s5cmd is on PATH, in rounds that take turns,
# and prints the median of each and its ratio to the agent's. The agent verifies sha256 and syncs to the disk; the
# others do neither. The floor is what no client can do without: a copy on this disk, synced, and its sha256.
#
#   bench/fetch.sh                      all parts, 8 GiB in 4 files, 3 rounds: 24 GiB of disk and half an hour
#   SIZE=512M ROUNDS=1 bench/fetch.sh   a look
#   PARTS="http paced" bench/fetch.sh   some of them
#
#   http      from bench/origin on this machine
#   s3        from versitygw: VERSITYGW, or on PATH, or as test/e2e built it
#   paced     from bench/origin at 400 Mbit/s a connection and 20 ms to the first byte
#   kill      killed (-9) with 90 % here, and again: what is fetched twice
#   revision  a second revision that shares 29 of 30 shards
#   wait      gpu-agent models wait, on a model that is ready
#   small     FILES (100000) files of 2 KB, from a directory, over HTTP and from versitygw, and one of them changed; from stand-ins
#             of the hub and of a registry
#   memory    MEMORY_SIZE (4G) in a memory cgroup of LIMIT (128M): needs root and a cgroup that can be written
# WORK is where the bytes go (default: a new directory in TMPDIR, which should be a disk).
set -euo pipefail
cd "$(dirname "$0")/.."
size=${SIZE:-8G} rounds=${ROUNDS:-3} parts=${PARTS:-http s3 paced kill revision wait small memory}
command -v /usr/bin/time >/dev/null || { echo "fetch.sh: needs GNU time at /usr/bin/time" >&2; exit 2; }

work=$(mktemp -d "${WORK:-${TMPDIR:-/tmp}}/bench-fetch.XXXXXX")
servers=() group=
finish() {
	for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done || true
	[ -z "$group" ] || rmdir "$group" 2>/dev/null || true
	chmod -R u+w "$work" && rm -rf "$work"
}
trap finish EXIT
mkdir -p "$work/www/bench" "$work/out" "$work/s3"
: >"$work/results"
CGO_ENABLED=0 go build -o "$work/" ./bench/fetch ./bench/origin ./bench/crumbs
digest=(openssl dgst -sha256) # with the CPU's instructions, as the cache does; coreutils may be built without
command -v openssl >/dev/null || digest=(sha256sum)

bytes() { numfmt --from=iec "$1"; }
# files DIR COUNT BYTES: random files w0…, with their SHA256SUMS, which is how an HTTP directory is named.
files() {
	mkdir -p "$1"
	for i in $(seq 0 $(($2 - 1))); do head -c "$3" /dev/urandom >"$1/w$i"; done
	(cd "$1" && "${digest[@]}" -r w* 2>/dev/null | sed 's/ \*/  /' >SHA256SUMS || sha256sum w* >SHA256SUMS)
}
# serve NAME flags…: an origin, or what PROGRAM is; its address is in $NAME.
serve() {
	local name=$1
	shift
	: >"$work/address.$name"
	"$work/${PROGRAM:-origin}" "$@" >"$work/address.$name" &
	servers+=($!)
	for _ in $(seq 200); do [ -s "$work/address.$name" ] && break; sleep 0.05; done
	printf -v "$name" %s "$(cat "$work/address.$name")"
	[ -n "${!name}" ] || { echo "fetch.sh: the origin did not start" >&2; exit 1; }
}
# objects DIR flags…: versitygw, whose buckets are the directories in DIR; its address is in $s3.
objects() {
	local dir=$1 gateway=${VERSITYGW:-$(command -v versitygw || ls -t "$HOME"/.cache/gpu-agent-e2e/*/versitygw 2>/dev/null | head -n 1)}
	shift
	[ -n "$gateway" ] || { echo "no versitygw: set VERSITYGW, or run make e2e once" && return 1; }
	export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench-secret AWS_REGION=us-east-1
	local port=${S3_PORT:-17070}
	s3=http://127.0.0.1:$port
	"$gateway" --access bench --secret bench-secret --port "127.0.0.1:$port" --quiet "$@" posix "$dir" >/dev/null 2>&1 &
	servers+=($!)
	for _ in $(seq 100); do (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
}
end_objects() {
	kill "${servers[-1]}" && wait "${servers[-1]}" 2>/dev/null || true
	unset 'servers[-1]'
}
fresh() { chmod -R u+w "$work/out" && rm -rf "$work/out" && mkdir "$work/out"; }
# measure PART NAME command…: one run, into an empty out/.
measure() {
	local part=$1 name=$2
	shift 2
	fresh
	sync
	if /usr/bin/time -v -o "$work/time" "$@" >"$work/log" 2>&1; then
		awk -v part="$part" -v name="$name" -v results="$work/results" '
			/Elapsed/ { n = split($NF, t, ":"); wall = 0; for (i = 1; i <= n; i++) wall = wall * 60 + t[i] }
			/User time/ { user = $NF } /System time/ { sys = $NF } /Maximum resident/ { rss = $NF / 1024 }
			END { printf "%-9s %-16s %8.2f s wall %8.2f s CPU %8.1f MiB peak", part, name, wall, user + sys, rss
				print part, name, wall, user + sys, rss >>results }' "$work/time"
		sed -n '/fetched in/s/.*; \([0-9.]* MiB of memory more.*\)/  \1/p' "$work/log" | tr -d '\n'
		echo
	else
		printf '%-9s %-16s failed: %s\n' "$part" "$name" "$(head -n 1 "$work/log")"
	fi
}
wants() { case " $parts " in *" $1 "*) ;; *) return 1 ;; esac; }
has() { command -v "$1" >/dev/null; }

if wants http || wants s3 || wants paced || wants kill; then
	files "$work/www/bench" 4 $(($(bytes "$size") / 4))
	serve http -dir "$work/www"
fi

if wants http; then
	printf "$http/bench/w%d\n" 0 1 2 3 >"$work/list"
	for _ in $(seq "$rounds"); do
		measure http floor bash -c 'cp "$1"/w* "$2" && sync "$2"/w* && "${@:3}" "$2"/w*' - "$work/www/bench" "$work/out" "${digest[@]}"
		measure http gpu-agent "$work/fetch" -root "$work/out" "$http/bench/"
		! has curl || measure http curl curl -sSf --remote-name-all --output-dir "$work/out" "$http/bench/w[0-3]"
		! has aria2c || measure http aria2c aria2c -q -d "$work/out" -i "$work/list"
	done
fi

if wants s3; then
	if ! has s5cmd; then
		echo "s3: no s5cmd on PATH, which puts the files there: github.com/peak/s5cmd"
	elif mkdir "$work/s3/bench" && objects "$work/s3"; then
		s5cmd --log error --endpoint-url "$s3" cp "$work/www/bench/w*" s3://bench/m/
		for _ in $(seq "$rounds"); do
			measure s3 floor bash -c 'cp "$1"/w* "$2" && sync "$2"/w* && "${@:3}" "$2"/w*' - "$work/www/bench" "$work/out" "${digest[@]}"
			measure s3 gpu-agent "$work/fetch" -root "$work/out" -endpoint "$s3" s3://bench/m/
			measure s3 s5cmd s5cmd --endpoint-url "$s3" cp 's3://bench/m/*' "$work/out/"
			# What s5cmd needs to be as sure of the bytes, and on the disk.
			measure s3 s5cmd-verified bash -c 's5cmd --endpoint-url "$1" cp "s3://bench/m/*" "$2/" && (sync "$2"/w* & "${@:3}" "$2"/w* & wait)' - "$s3" "$work/out" "${digest[@]}"
		done
		end_objects
		rm -rf "$work/s3"
	fi
fi

if wants paced; then
	serve paced -dir "$work/www" -rate 50000000 -delay 20ms
	export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench-secret AWS_REGION=us-east-1
	for i in 0 1 2 3; do
		echo "cp s3://bench/w$i $work/out/w$i" >>"$work/default"
		echo "cp -c 16 -p 16 s3://bench/w$i $work/out/w$i" >>"$work/best"
	done
	for _ in $(seq "$rounds"); do
		measure paced gpu-agent "$work/fetch" -root "$work/out" "$paced/bench/"
		if has s5cmd; then
			measure paced s5cmd-c16-p16 s5cmd --endpoint-url "$paced" run "$work/best"
			measure paced s5cmd s5cmd --endpoint-url "$paced" run "$work/default"
		fi
		! has aria2c || measure paced aria2c-x16-s16 aria2c -q -x 16 -s 16 -k 16M -d "$work/out" -i <(printf "$paced/bench/w%d\n" 0 1 2 3)
	done
fi

if wants kill; then
	fresh
	{ "$work/fetch" -root "$work/out" -kill 0.9 "$http/bench/" >"$work/killed"; } 2>/dev/null || true
	# killed with N of SIZE bytes; then F of them fetched
	"$work/fetch" -root "$work/out" "$http/bench/" >"$work/again"
	awk 'NR == FNR { here = $3; of = $5; next } { printf "kill      %.0f of %.0f bytes here when killed, %.1f MiB of them fetched again\n", here, of, ($5 - (of - here)) / 1048576 }' \
		"$work/killed" <(tr -d , <"$work/again" | awk '{ print $1, $2, $3, $4, $5 }')
fi

if wants revision; then
	files "$work/www/one" 30 $((16 << 20))
	cp -al "$work/www/one" "$work/www/two"
	rm "$work/www/two/w7" "$work/www/two/SHA256SUMS"
	head -c $((16 << 20)) /dev/urandom >"$work/www/two/w7"
	(cd "$work/www/two" && sha256sum w* >SHA256SUMS)
	serve revisions -dir "$work/www"
	fresh
	"$work/fetch" -root "$work/out" "$revisions/one/" >/dev/null
	echo "revision  29 of 30 shards of 16 MiB are here: $("$work/fetch" -root "$work/out" "$revisions/two/")"
	rm -rf "$work/www/one" "$work/www/two"
fi

if wants wait; then
	CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags '-s -w' -o "$work/gpu-agent" ./cmd/gpu-agent
	mkdir -p "$work/www/tiny" && echo weights >"$work/www/tiny/w0" && (cd "$work/www/tiny" && sha256sum w* >SHA256SUMS)
	serve tiny -dir "$work/www"
	fresh
	"$work/fetch" -root "$work/out" "$tiny/tiny/" >/dev/null
	for _ in $(seq 20); do
		begun=$(date +%s%N)
		"$work/gpu-agent" models wait bench --root "$work/out/models" >/dev/null
		echo $((($(date +%s%N) - begun) / 1000))
	done | sort -n | awk '{ t[NR] = $1 / 1000 } END { printf "wait      models wait on a ready model: %.0f ms, best of %d %.0f ms, worst %.0f ms\n", t[int((NR + 1) / 2)], NR, t[1], t[NR] }'
fi

if wants small; then
	count=${FILES:-100000}
	mkdir -p "$work/small/crumbs"
	head -c $((1 << 20)) /dev/urandom >"$work/noise"
	(cd "$work/small/crumbs" && split -b 2000 -a 6 -d <(for _ in $(seq $((count * 2000 / 1048576 + 1))); do openssl rand $((1 << 20)); done | head -c $((count * 2000))) f)
	(cd "$work/small/crumbs" && find . -type f -name 'f*' -printf '%P\n' | sort | xargs sha256sum >"$work/sums" && mv "$work/sums" SHA256SUMS)
	serve crumbs -dir "$work/small"
	fresh
	echo "small     file://: $("$work/fetch" -root "$work/out" "file://$work/small/crumbs/")"
	fresh
	echo "small     http://: $("$work/fetch" -root "$work/out" "$crumbs/crumbs/")"
	if objects "$work/small" --keep-alive; then # as S3 itself, and unlike its default
		fresh
		echo "small     s3://: $("$work/fetch" -root "$work/out" -endpoint "$s3" s3://crumbs/)"
		echo "small     and again: $("$work/fetch" -root "$work/out" -endpoint "$s3" s3://crumbs/)"
		openssl rand 2000 >"$work/small/crumbs/f000000"
		(cd "$work/small/crumbs" && sha256sum f000000 && grep -v ' f000000$' SHA256SUMS) >"$work/sums" && mv "$work/sums" "$work/small/crumbs/SHA256SUMS"
		echo "small     and one of them changed: $("$work/fetch" -root "$work/out" -endpoint "$s3" s3://crumbs/)"
		end_objects
	fi
	rm -rf "$work/small"
	for lfs in false true; do
		PROGRAM=crumbs serve many -files "$count" -lfs="$lfs"
		fresh
		echo "small     hf://, LFS $lfs: $("$work/fetch" -root "$work/out" -endpoint "http://$many" hf://o/m)"
		echo "small     and again: $("$work/fetch" -root "$work/out" -endpoint "http://$many" hf://o/m)"
	done
	fresh
	echo "small     oci://, one layer: $("$work/fetch" -root "$work/out" "oci://$many/o/m:v1")"
	echo "small     and again: $("$work/fetch" -root "$work/out" "oci://$many/o/m:v1")"
fi

if wants memory; then
	limit=$(bytes "${LIMIT:-128M}")
	rm -rf "$work/www/bench"
	files "$work/www/big" 4 $(($(bytes "${MEMORY_SIZE:-4G}") / 4))
	serve big -dir "$work/www"
	if grep -qw memory /sys/fs/cgroup/cgroup.controllers 2>/dev/null && group=/sys/fs/cgroup/gpu-agent-bench.$$ && mkdir "$group" 2>/dev/null && [ -w "$group/memory.max" ]; then
		echo "$limit" >"$group/memory.max" && (echo 0 >"$group/memory.swap.max") 2>/dev/null || true
		kills="$group/memory.events" version=2
	elif group=/sys/fs/cgroup/memory/gpu-agent-bench.$$ && mkdir "$group" 2>/dev/null; then
		echo "$limit" >"$group/memory.limit_in_bytes"
		kills="$group/memory.oom_control" version=1
	else
		group= version=
		echo "memory    not measured: no memory cgroup can be made here: it needs root and a writable /sys/fs/cgroup"
	fi
	if [ -n "$version" ]; then
		for _ in $(seq "$rounds"); do
			measure memory no-limit "$work/fetch" -root "$work/out" "$big/big/"
			measure memory "limit-$((limit >> 20))M" bash -c 'echo $$ >"$1/cgroup.procs" && exec "${@:2}"' - "$group" "$work/fetch" -root "$work/out" "$big/big/"
		done
		echo "memory    cgroup v$version of $((limit >> 20)) MiB: $(grep -h oom_kill "$kills" | grep -v disable | tr '\n' ' ')"
	fi
fi

# Medians, and their ratio to the agent's.
sort -k1,1 -k2,2 -k3,3n "$work/results" | awk '
	{ key = $1 " " $2; n[key]++; wall[key, n[key]] = $3; cpu[key, n[key]] = $4; rss[key] = $5 > rss[key] ? $5 : rss[key]; if (n[key] == 1) order[++keys] = key }
	function median(of, key,  i, j, t, m) {
		m = n[key]
		for (i = 1; i <= m; i++) s[i] = of[key, i]
		for (i = 2; i <= m; i++) for (j = i; j > 1 && s[j - 1] > s[j]; j--) { t = s[j]; s[j] = s[j - 1]; s[j - 1] = t }
		return m % 2 ? s[(m + 1) / 2] : (s[m / 2] + s[m / 2 + 1]) / 2
	}
	END {
		if (keys) printf "\n%-9s %-16s %10s %10s %10s %22s\n", "part", "client", "wall s", "CPU s", "peak MiB", "agent to it, wall/CPU"
		for (k = 1; k <= keys; k++) {
			split(order[k], at, " ")
			w = median(wall, order[k]); c = median(cpu, order[k])
			ours = at[1] " gpu-agent"
			ratio = n[ours] && order[k] != ours && w > 0 && c > 0 ? sprintf("%.2f / %.2f", median(wall, ours) / w, median(cpu, ours) / c) : ""
			printf "%-9s %-16s %10.2f %10.2f %10.1f %22s\n", at[1], at[2], w, c, rss[order[k]], ratio
		}
	}'
