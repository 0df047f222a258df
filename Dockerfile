# syntax=docker/dockerfile:1
# One image for all of AstrID's processes; docker-compose.yml says which runs what.
#   docker build --target cpu -t astrid:latest .
#   docker build --target cuda -t astrid:cuda .      torch for NVIDIA; the driver comes from the host

FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/astrid
ENV PATH=/opt/astrid/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY constraints.txt ./
COPY locks locks
# Every file is one whose hash the lock has, or pip stops.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r locks/run.txt -r locks/k8s.txt

# The largest part in a layer of its own. What it needs is there already, but for CUDA's own libraries.
FROM build AS torch-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "torch==$(sed -n 's/^torch==//p' constraints.txt)" --index-url "$TORCH_INDEX"

FROM build AS torch-cuda
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "torch==$(sed -n 's/^torch==//p' constraints.txt)" --index-url "$TORCH_INDEX"

FROM torch-cpu AS astrid-cpu
COPY pyproject.toml README.md LICENSE dagster.yaml ./
COPY astrid_pipeline astrid_pipeline
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

FROM torch-cuda AS astrid-cuda
COPY pyproject.toml README.md LICENSE dagster.yaml ./
COPY astrid_pipeline astrid_pipeline
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

# What both have in common: a user without rights, and Dagster's instance.
FROM python:3.11.14-slim-bookworm AS base
RUN useradd --create-home --home-dir /var/lib/astrid --uid 10001 --shell /usr/sbin/nologin astrid
COPY dagster.yaml workspace.yaml /opt/astrid/home/
# An empty file keeps Dagster's welcome window away.
RUN mkdir /opt/astrid/home/.nux && touch /opt/astrid/home/.nux/nux.yaml
ENV PATH=/opt/astrid/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/astrid \
    ASTRID_HOME=/var/lib/astrid \
    DAGSTER_HOME=/opt/astrid/home
# By number: where only numbers can be checked (Kubernetes' runAsNonRoot), it is known not to be root.
USER 10001:10001
WORKDIR /var/lib/astrid
VOLUME /var/lib/astrid
EXPOSE 3000 4000 5000 8000
CMD ["astrid", "--help"]

FROM base AS cuda
COPY --from=astrid-cuda /opt/astrid /opt/astrid
# What the container is given of the GPU by NVIDIA's runtime.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last one is what `docker build .` makes.
FROM base AS cpu
COPY --from=astrid-cpu /opt/astrid /opt/astrid
