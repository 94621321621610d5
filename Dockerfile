# SPDX-License-Identifier: Apache-2.0
#
# BUILD is an image with Go, make, gcc and the C library for static linking.
ARG BUILD=docker.io/library/golang:1.26-bookworm
FROM ${BUILD} AS build
# How modules are fetched, when not as usual; scripts/image passes them on.
ARG GOPROXY=
ARG GOSUMDB=
ARG GONOSUMDB=
ARG GOPRIVATE=
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=development
RUN make static VERSION="${VERSION}"

FROM scratch
COPY --from=build /src/bin/static/keyhole /keyhole
ENTRYPOINT ["/keyhole"]
CMD ["agent", "--config", "/etc/keyhole/config.yaml"]
