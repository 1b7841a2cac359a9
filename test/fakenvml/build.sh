#!/bin/sh
# Builds the fake driver library: build.sh OUT.so [compiler flags, such as -DFAKENVML_OLD]
set -eu
out=$1
shift
exec "${CC:-gcc}" -std=gnu11 -O1 -g -Wall -Wextra -Werror -fPIC -fvisibility=hidden -shared -pthread \
	-Wl,-soname,libnvidia-ml.so.1 "$@" -o "$out" "$(dirname "$0")/fakenvml.c"
