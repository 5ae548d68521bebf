# Two stages: the first installs wheels, with compilers and caches; the second contains only the result. torch is not
# included: convert models and run the reference runner on another machine. Models, keys, database and log are in volumes.
#
# BASE may be any Debian with Python 3.11 or newer and its venv module. Pin it by a digest that you have verified:
#   docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:… -t chatsvc .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
# Packages first, for the build cache: they change less often than our code. Each file's hash must be in the lock.
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/chatsvc \
    && /opt/chatsvc/bin/pip install --require-hashes --only-binary :all: -r requirements.lock \
    && python3 -m venv /build/tools \
    && /build/tools/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE Dockerfile compose.yaml ./
COPY config ./config
COPY nginx ./nginx
COPY systemd ./systemd
COPY deploy ./deploy
COPY docs ./docs
COPY src ./src
RUN PATH=/build/tools/bin:$PATH /build/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/dist . \
    && /opt/chatsvc/bin/pip install --no-deps --no-index /build/dist/*.whl \
    && find /opt/chatsvc -name '__pycache__' -prune -exec rm -rf {} + \
    && /opt/chatsvc/bin/chatsvc --version

FROM ${BASE} AS runtime
# Two accounts: the web process (10001) owns home and models; the engine (10002) can only read the models. The web process
# is in the engine's group, to reach its socket. nginx needs the web process's group, to reach its socket.
RUN groupadd --gid 10001 chatsvc && groupadd --gid 10002 chatsvc-engine \
    && useradd --uid 10001 --gid 10001 --groups 10002 --home-dir /var/lib/chatsvc --no-create-home \
        --shell /usr/sbin/nologin chatsvc \
    && useradd --uid 10002 --gid 10002 --home-dir /var/lib/chatsvc-engine --no-create-home \
        --shell /usr/sbin/nologin chatsvc-engine \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/chatsvc \
    && install -d -o 10001 -g 10002 -m 0750 /var/lib/chatsvc-engine /var/lib/chatsvc-engine/keys \
    && install -d -o 10001 -g 10002 -m 2750 /var/lib/chatsvc/models /var/lib/chatsvc-engine/models \
    && install -d -o 10001 -g 10001 -m 0750 /run/chatsvc /etc/chatsvc-nginx \
    && install -d -o 10002 -g 10002 -m 0750 /run/chatsvc-engine
COPY --from=build /opt/chatsvc /opt/chatsvc
COPY deploy/first-start.sh /opt/chatsvc/bin/first-start
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
# The web process is asked over its socket.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import sys; from chatsvc.supervisor.probe import answers; from chatsvc.settings.load import load; sys.exit(not answers(load()))"]
CMD ["chatsvc", "serve"]
