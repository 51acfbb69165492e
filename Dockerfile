# The agent of a node. `make image`, or with another Debian 12: podman build --build-arg BASE=registry.example.org/debian:12-slim .
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates gcc libc6-dev libfuse3-dev pkg-config python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/fusevol
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY fusevol fusevol
COPY agent agent
RUN /opt/fusevol/bin/pip install --no-cache-dir . \
 && /opt/fusevol/bin/pip uninstall -y pip setuptools

FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends fuse3 libfuse3-3 python3 util-linux \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/fusevol /opt/fusevol
RUN ln -s /opt/fusevol/bin/fusevol /usr/local/bin/fusevol && fusevol version --client
VOLUME /var/lib/fusevol
ENTRYPOINT ["fusevol", "agent"]
