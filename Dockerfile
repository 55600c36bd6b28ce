# syntax=docker/dockerfile:1
#
# One image of each program:
#
#   docker build --target patchkeep .
#   docker build --target mirror .
#   docker build --target agent .

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH
ARG VERSION=devel COMMIT DATE
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
      -ldflags "-s -w \
        -X github.com/patchkeep/patchkeep/cmd/internal/cli.version=$VERSION \
        -X github.com/patchkeep/patchkeep/cmd/internal/cli.commit=$COMMIT \
        -X github.com/patchkeep/patchkeep/cmd/internal/cli.date=$DATE" \
      -o /out/ ./cmd/patchkeep ./cmd/patchkeep-mirror ./cmd/patchkeep-agent
# The image has no shell to make them with.
RUN mkdir -p /data/cache /data/state

FROM gcr.io/distroless/static-debian12:nonroot AS base
ARG VERSION=devel COMMIT DATE
LABEL org.opencontainers.image.source="https://github.com/patchkeep/patchkeep" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Patchkeep" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.created="$DATE"
USER nonroot:nonroot

FROM base AS patchkeep
LABEL org.opencontainers.image.title="patchkeep" \
      org.opencontainers.image.description="Publishes patches to a signed repository"
COPY --from=build /out/patchkeep /usr/local/bin/patchkeep
ENTRYPOINT ["/usr/local/bin/patchkeep"]

FROM base AS mirror
LABEL org.opencontainers.image.title="patchkeep-mirror" \
      org.opencontainers.image.description="Origin and mirror of a signed patch repository"
COPY --from=build /out/patchkeep-mirror /usr/local/bin/patchkeep-mirror
COPY --from=build --chown=nonroot:nonroot --chmod=0700 /data/cache /var/cache/patchkeep
VOLUME /var/cache/patchkeep
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/patchkeep-mirror"]

FROM base AS agent
LABEL org.opencontainers.image.title="patchkeep-agent" \
      org.opencontainers.image.description="Verifies patches and decides what a machine installs"
COPY --from=build /out/patchkeep-agent /usr/local/bin/patchkeep-agent
COPY --from=build --chown=nonroot:nonroot --chmod=0700 /data/state /var/lib/patchkeep
VOLUME /var/lib/patchkeep
ENTRYPOINT ["/usr/local/bin/patchkeep-agent"]
