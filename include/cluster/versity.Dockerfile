# The Versity S3 Gateway on a folder: docs/store.md.
FROM golang:1.27-alpine AS build
COPY include/servers /servers
RUN /servers/build-versity /built/versitygw

FROM alpine:3.22
RUN apk add --no-cache curl && install -d -o nobody -g nobody /data /data/objects /data/users
COPY --from=build /built/versitygw /usr/bin/versitygw
USER nobody
VOLUME /data
ENTRYPOINT ["versitygw"]
