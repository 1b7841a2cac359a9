# The toolchain that go.mod names, fetched by any newer Go that is installed.
export GOTOOLCHAIN := auto

# go-nvml wraps functions that its own header calls deprecated.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations

# Without x/net/trace: see third_party/conntrack.
export GOFLAGS := $(GOFLAGS) -tags=grpcnotrace

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE ?= docker.io/library/gpu-agent:dev
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: build run test lint image e2e clean

# With a C compiler the agent reads the driver; without one it simulates GPUs and says so.
build:
	go build -trimpath -ldflags "$(LDFLAGS)" -o bin/gpu-agent ./cmd/gpu-agent

# Built and then run in the shell's place: `go run` would end with an error on Ctrl-C.
run:
	@mkdir -p .run
	@go build -o .run/demo ./cmd/demo && exec .run/demo

test: lint
	go test -race -shuffle=on ./...
	go test -run 'MayBeTheLast|OrBeTheLast|ACrash' ./pkg/cache # a fault at each step: see stride there
	CGO_ENABLED=0 go build -o /dev/null ./cmd/gpu-agent

lint:
	@test -z "$$(gofmt -l .)" || { echo "not gofmt'ed:"; gofmt -l .; exit 1; }
	go vet ./...

# An OCI tarball for `ctr images import`, `skopeo` or `crane`; needs Go, a C compiler and glibc.
image: build
	mkdir -p dist
	go run ./test/image -o dist/gpu-agent.tar -name $(IMAGE) -libc -entrypoint /usr/bin/gpu-agent bin/gpu-agent=/usr/bin/gpu-agent

# A real one-node Kubernetes: needs root and Debian's packages of test/e2e/README.md.
e2e: image
	cd test/e2e && go test -count=1 -timeout 30m -v ./...

clean:
	rm -rf bin dist .run
