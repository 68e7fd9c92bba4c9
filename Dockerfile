# The worker as an image: what running needs and nothing else, for a user without rights.
#
# BASE may name a digest: --build-arg BASE=python@sha256:...

ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
COPY requirements requirements
# Only files with the digests that are pinned get in.
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/packaging.txt \
    && python -m venv --without-pip /opt/worker \
    && /opt/build/bin/pip --python /opt/worker/bin/python install --no-cache-dir \
        --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY native native
COPY worker worker
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /tmp . \
    && /opt/build/bin/pip --python /opt/worker/bin/python install --no-cache-dir --no-deps /tmp/*.whl

FROM ${BASE}
COPY --from=build /opt/worker /opt/worker
# The cache is for its owner alone; a new volume takes rights and owner over from here.
RUN useradd --system --uid 10001 worker && install -d -m 700 -o worker /var/cache/worker
ENV PATH=/opt/worker/bin:$PATH \
    WORKER_CACHE__DIRECTORY=/var/cache/worker \
    WORKER_RUN__LISTEN=0.0.0.0:9464
# By number, so that a cluster sees that it is not root.
USER 10001
WORKDIR /data
VOLUME /var/cache/worker
EXPOSE 9464
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["worker", "health"]
ENTRYPOINT ["worker"]
CMD ["run"]
