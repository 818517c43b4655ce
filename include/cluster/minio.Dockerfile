# MinIO, built from the last commit of its archived source with our filter: docs/store.md.
FROM golang:1.27-alpine AS build
COPY include/servers /servers
RUN /servers/build-minio /built/minio

FROM alpine:3.22
RUN apk add --no-cache curl && install -d -o nobody -g nobody /data
COPY --from=build /built/minio /usr/bin/minio
USER nobody
VOLUME /data
ENTRYPOINT ["minio"]
