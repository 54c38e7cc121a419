# A host in a container, built from this repository. The base needs apt and Python 3.11 or newer in it.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends bash ca-certificates git procps python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 tools \
    && install -d -o tools -g tools -m 0700 /var/lib/toolhost \
    && install -d -o tools -g tools /srv/tools

WORKDIR /opt/toolhost
COPY requirements.lock ./
RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY sdk sdk
COPY toolhost toolhost
COPY agents agents
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

ENV TOOLHOST_HOME=/var/lib/toolhost PATH=/opt/toolhost/.venv/bin:/usr/local/bin:/usr/bin:/bin
USER tools
VOLUME /var/lib/toolhost
EXPOSE 7420
ENTRYPOINT ["toolhost"]
# 0.0.0.0 is the container's own network; compose.yaml publishes the port on loopback only.
CMD ["serve", "--host", "0.0.0.0", "--allowed-host", "localhost", "--allowed-host", "127.0.0.1", "--work-dir", "/srv/tools"]
