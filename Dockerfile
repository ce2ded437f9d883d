# syntax=docker/dockerfile:1

# docker build -t opsramp-exporter --build-arg REVISION=$(git rev-parse --short HEAD) .

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
# .dockerignore lets in what the build needs and nothing else.
COPY . .
ARG REVISION=
# Registry and build folder are caches of the builder: after a change of our own code only that is
# compiled. The program is copied out because a cache is no part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    OPSRAMP_EXPORTER_REVISION=$REVISION cargo build --release --locked \
    && install -D target/release/opsramp-exporter /out/usr/bin/opsramp-exporter \
    && install -d -m 0700 /out/var/lib/opsramp-exporter

# The C library, CA certificates and a user without rights; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/usr/bin/opsramp-exporter /usr/bin/opsramp-exporter
COPY --from=build --chown=65532:65532 /out/var/lib/opsramp-exporter /var/lib/opsramp-exporter
# Which alerts are known. The rest of the file system may be read-only; the demo alone writes to /tmp.
VOLUME /var/lib/opsramp-exporter
ENV STATE_DIRECTORY=/var/lib/opsramp-exporter
USER 65532:65532
EXPOSE 10836
# No HEALTHCHECK: it would have to be a program in the image, and there is none that asks
# /-/healthy: no shell, no curl, and opsramp-exporter itself cannot do it yet. Orchestrators can ask
# over HTTP.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/opsramp-exporter"]
