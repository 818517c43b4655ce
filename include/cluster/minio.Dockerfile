# MinIO at the last commit of its archived source, see docs/store.md.
FROM golang:1.24-alpine AS build
RUN CGO_ENABLED=0 GOBIN=/built go install github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

FROM alpine:3.22
RUN apk add --no-cache curl && install -d -o nobody -g nobody /data
COPY --from=build /built/minio /usr/bin/minio
USER nobody
VOLUME /data
ENTRYPOINT ["minio"]
