# syntax=docker/dockerfile:1
# One image for all of AstrID's processes; docker-compose.yml says which runs what.

FROM python:3.11-slim-bookworm AS build
# torch for the CPU. For NVIDIA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/astrid
ENV PATH=/opt/astrid/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY constraints.txt ./
# The largest part in a layer of its own: it changes least.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "torch==$(sed -n 's/^torch==//p' constraints.txt)" --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE dagster.yaml ./
COPY astrid_pipeline astrid_pipeline
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
RUN useradd --create-home --home-dir /var/lib/astrid --uid 10001 --shell /usr/sbin/nologin astrid
COPY --from=build /opt/astrid /opt/astrid
COPY dagster.yaml workspace.yaml /opt/astrid/home/
# An empty file keeps Dagster's welcome window away.
RUN mkdir /opt/astrid/home/.nux && touch /opt/astrid/home/.nux/nux.yaml
ENV PATH=/opt/astrid/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/astrid \
    ASTRID_HOME=/var/lib/astrid \
    DAGSTER_HOME=/opt/astrid/home
USER astrid
WORKDIR /var/lib/astrid
VOLUME /var/lib/astrid
EXPOSE 3000 4000 5000
CMD ["astrid", "--help"]
