# syntax=docker/dockerfile:1
# Two stages: wheels are installed where compilers and caches may be, and only the result goes on. No torch in here:
# conversion and the reference runner belong on another machine. Models, keys, database and log live in volumes.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
RUN python -m venv /opt/chatsvc
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE Dockerfile compose.yaml ./
COPY config ./config
COPY nginx ./nginx
COPY systemd ./systemd
COPY docs ./docs
COPY src ./src
RUN /opt/chatsvc/bin/pip install -c constraints.txt '.[postgres,redis,directory]' \
    && find /opt/chatsvc -name '__pycache__' -prune -exec rm -rf {} + \
    && /opt/chatsvc/bin/chatsvc --version

FROM python:3.11-slim-bookworm AS runtime
# The group is nginx's way to the web socket: give it to that container's user as a supplementary group.
RUN groupadd --gid 10001 chatsvc \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/chatsvc --no-create-home --shell /usr/sbin/nologin chatsvc \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/chatsvc \
    && install -d -o 10001 -g 10001 -m 0750 /run/chatsvc /run/chatsvc-engine
COPY --from=build /opt/chatsvc /opt/chatsvc
ENV PATH=/opt/chatsvc/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CHATSVC_HOME=/var/lib/chatsvc \
    CHATSVC_SERVER__SOCKET=/run/chatsvc/web.sock \
    CHATSVC_ENGINE__SOCKET=/run/chatsvc-engine/engine.sock \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    MALLOC_ARENA_MAX=2
USER 10001:10001
WORKDIR /var/lib/chatsvc
VOLUME ["/var/lib/chatsvc"]
STOPSIGNAL SIGTERM
# Readiness is asked for over the socket of the web process.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import sys; from chatsvc.cli.probe import answers; from chatsvc.settings import load; sys.exit(not answers(load()))"]
CMD ["chatsvc", "serve"]
