# The journal as a container image: the service alone, without the embedded PostgreSQL.
#
#   docker build --tag journal .
#   docker run --read-only --tmpfs /tmp --volume journal:/data --env JOURNAL_DATABASE_URL=… journal
#
# It listens on every address of the container, and so does not start before tokens guard it or
# JOURNAL_ALLOW_ANONYMOUS=true says that the network does. Where the packages come from is pip's
# configuration: `--secret id=pip,src=pip.conf` hands one to the build and leaves no trace in the image.
ARG PYTHON_IMAGE=python:3.13.9-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /build/tools && python -m venv --without-pip /opt/journal
COPY deploy/locks/build.txt deploy/locks/image.txt deploy/locks/
# Wheels only: the image has no compiler, and a package that suddenly needs one should be noticed.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    tools/bin/pip install --require-hashes --only-binary :all: --requirement deploy/locks/build.txt && \
    tools/bin/pip --python /opt/journal/bin/python install --require-hashes --only-binary :all: \
        --requirement deploy/locks/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY app app
RUN tools/bin/hatchling build --target wheel --directory dist && \
    tools/bin/pip --python /opt/journal/bin/python install --no-index --no-deps dist/*.whl

# What the image runs, as a CycloneDX bill of materials.
FROM build AS sbom
COPY deploy/locks/tools.txt deploy/locks/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv /sbom/tools && \
    /sbom/tools/bin/pip install --require-hashes --only-binary :all: --requirement deploy/locks/tools.txt && \
    /sbom/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /sbom/journal.cdx.json /opt/journal/bin/python

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="journal" \
      org.opencontainers.image.description="A durable write-ahead journal over HTTP/2, replicated into PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 journal && \
    useradd --system --uid 10001 --gid journal --home-dir /data --no-create-home --shell /usr/sbin/nologin journal && \
    install --directory --owner journal --group journal --mode 0700 /data
COPY --from=build /opt/journal /opt/journal
COPY --from=sbom /sbom/journal.cdx.json /opt/journal/journal.cdx.json
COPY deploy/healthcheck.py /opt/journal/healthcheck.py
ENV PATH=/opt/journal/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    JOURNAL_DATA_DIR=/data \
    JOURNAL_HOST=0.0.0.0 \
    JOURNAL_PORT=8080
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# The first start may have a long log to recover; failures in that time do not count.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "/opt/journal/healthcheck.py"]
ENTRYPOINT ["journal"]
CMD ["serve"]
