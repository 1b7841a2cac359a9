# The base images are arguments, so that this builds from a mirror, or where no registry is reachable
# from images that were loaded by hand. `make image` needs neither this file nor a container engine.
ARG BUILD_IMAGE=golang:1.27.4-bookworm
# glibc and no shell: libnvidia-ml.so.1 is opened at run time and needs the dynamic loader.
ARG BASE_IMAGE=gcr.io/distroless/base-debian12

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
COPY third_party third_party
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=1 go build -trimpath -tags grpcnotrace -ldflags "-s -w -X main.version=${VERSION}" -o /gpu-agent ./cmd/gpu-agent

FROM ${BASE_IMAGE}
COPY --from=build /gpu-agent /usr/bin/gpu-agent
# Root: the kubelet's sockets and the model directory belong to root. All capabilities are dropped by
# the DaemonSet. `gpu-agent models wait` in an init container runs as any user.
USER 0
EXPOSE 9400
ENTRYPOINT ["/usr/bin/gpu-agent"]
CMD ["run"]
