# The worker as an image: what running needs and nothing else, for a user without rights.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY worker worker
RUN python -m venv --without-pip /opt/worker \
    && python -m pip --python /opt/worker/bin/python install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/worker /opt/worker
# The cache is for its owner alone; a new volume takes rights and owner over from here.
RUN useradd --system --uid 10001 worker && install -d -m 700 -o worker /var/cache/worker
ENV PATH=/opt/worker/bin:$PATH \
    WORKER_CACHE__DIRECTORY=/var/cache/worker \
    WORKER_RUN__LISTEN=0.0.0.0:9464
USER worker
WORKDIR /data
VOLUME /var/cache/worker
EXPOSE 9464
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["worker", "health"]
ENTRYPOINT ["worker"]
CMD ["run"]
