# syntax=docker/dockerfile:1
# One image for every process of the matrix: the roles are chosen when it is started, e.g.
#   docker run -e DATABASE_URL=… cogo serve --roles orchestrator,executor
# BASE must be a Debian with Python 3.11 or newer (there is no musl build of the embedded Postgres).
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
# The image's own certificates, so that a base with a company's proxy in it builds as well.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/cogo UV_PYTHON_PREFERENCE=only-system \
    UV_SYSTEM_CERTS=1
WORKDIR /src
RUN python3 -m venv /opt/uv && /opt/uv/bin/python -m pip install --no-cache-dir 'uv>=0.9,<1'
# The dependencies make a layer of their own: a change of the code does not install them again.
COPY pyproject.toml uv.lock ./
RUN ["/opt/uv/bin/uv", "sync", "--frozen", "--no-dev", "--no-install-project"]
COPY README.md LICENSE CHANGELOG.md plugins.toml ./
COPY sql ./sql
COPY cogo ./cogo
RUN ["/opt/uv/bin/uv", "sync", "--frozen", "--no-dev", "--no-editable"]

FROM ${BASE}
LABEL org.opencontainers.image.title="cogo" \
      org.opencontainers.image.description="A distributed agent platform: one Python process, one Postgres table" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/cogo/bin:$PATH PYTHONUNBUFFERED=1 COGO_DATA_DIR=/var/lib/cogo COGO_HOST=0.0.0.0 \
    COGO_CONFIG=/etc/cogo/plugins.toml
COPY --from=build /opt/cogo /opt/cogo
COPY plugins.toml /etc/cogo/plugins.toml
# The account that runs (initdb looks its name up; a minimal base has no useradd), and its data home for
# trying COGO out on the embedded Postgres.
RUN ["python3", "-c", "import os; \
open('/etc/passwd', 'a').write('cogo:x:10001:10001::/var/lib/cogo:/usr/sbin/nologin\\n'); \
open('/etc/group', 'a').write('cogo:x:10001:\\n'); \
os.makedirs('/var/lib/cogo', 0o700); os.chown('/var/lib/cogo', 10001, 10001)"]
WORKDIR /var/lib/cogo
USER 10001:10001
EXPOSE 3100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["cogo", "healthcheck"]
ENTRYPOINT ["cogo"]
CMD ["serve"]
