# syntax=docker/dockerfile:1

# docker build -t opsramp-exporter --build-arg REVISION=$(git rev-parse --short HEAD) .

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
# .dockerignore lets in what the build needs and nothing else.
COPY . .
ARG REVISION=
# Registry and build folder are caches of the builder: after a change of our own code only that is
# compiled. The program is copied out because a cache is no part of the image. Cargo tells by the times
# of our files whether they have changed; another tree's may be older than what the cache was built from.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=opsramp-exporter-target,target=/src/target,sharing=locked \
    find build.rs src migrations packaging -type f -exec touch {} + \
    && OPSRAMP_EXPORTER_REVISION=$REVISION cargo build --release --locked \
    && install -D target/release/opsramp-exporter /out/usr/bin/opsramp-exporter \
    && install -D -m 0644 -t /out/usr/share/doc/opsramp-exporter LICENSE packaging/third-party-licenses.txt \
    && install -d -m 0700 /out/var/lib/opsramp-exporter

# The C library, CA certificates and a user without rights; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/usr/bin/opsramp-exporter /usr/bin/opsramp-exporter
COPY --from=build /out/usr/share/doc/opsramp-exporter /usr/share/doc/opsramp-exporter
COPY --from=build --chown=65532:65532 /out/var/lib/opsramp-exporter /var/lib/opsramp-exporter
# Which alerts are known. The rest of the file system may be read-only; the demo alone writes to /tmp.
VOLUME /var/lib/opsramp-exporter
ENV STATE_DIRECTORY=/var/lib/opsramp-exporter
USER 65532:65532
EXPOSE 10836
# The program asks itself: there is no shell and no curl. Where the exporter listens elsewhere, it
# learns so from the file that OPSRAMP_EXPORTER_CONFIG_FILE names; flags of the command it cannot see.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["/usr/bin/opsramp-exporter", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/opsramp-exporter"]
