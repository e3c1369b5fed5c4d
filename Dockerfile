# syntax=docker/dockerfile:1.18
# Two images that serve bundles, without torch: `docker build --target cpu .` and `--target gpu`.
# Why they are made so, and what they weigh: docs/decisions/0004-images.md

FROM python:3.11.17-slim-trixie AS python
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore


# Not slim: it has the compiler that the CPU operators are built with.
FROM python:3.11.17-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY lct_deploy lct_deploy
COPY exporters exporters
COPY server server
COPY benchmarks benchmarks
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /dist .


# An environment without pip of its own: the images install nothing once they are built.
FROM build AS venv-cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/lct-deploy \
    && set -- /dist/*.whl \
    && python -m pip --python /opt/lct-deploy/bin/python install -c constraints.txt "$1[serve,cpu]"


FROM build AS venv-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/lct-deploy \
    && set -- /dist/*.whl \
    && python -m pip --python /opt/lct-deploy/bin/python install -c constraints.txt "$1[serve,gpu]"


FROM python AS runtime
RUN groupadd --gid 10001 lct \
    && useradd --uid 10001 --gid lct --no-log-init --no-create-home --shell /usr/sbin/nologin lct
# LCT_HOST also holds for a command of one's own, such as `docker run … serve /models/a /models/b`.
# Without the last one, onnxruntime keeps an identifier in the home directory and sends telemetry.
ENV PATH=/opt/lct-deploy/bin:$PATH \
    LCT_HOST=0.0.0.0 \
    ORT_DISABLE_TELEMETRY=1
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, unlike urllib, never asks a proxy that the environment names for 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; server = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); server.request('GET', '/v2/health/ready'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["lct-deploy"]
CMD ["serve", "/models/default", "--host", "0.0.0.0"]


FROM runtime AS gpu
USER 0
COPY --from=venv-gpu /opt/lct-deploy /opt/lct-deploy
# CUDA and cuDNN lie in the environment, as packages; onnxruntime finds them only where the loader looks.
RUN ls -d /opt/lct-deploy/lib/python*/site-packages/nvidia/*/lib > /etc/ld.so.conf.d/lct-deploy.conf \
    && ldconfig
USER 10001:10001
# The driver is the host's; the container runtime reads these three.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA=cuda>=13.0
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lct-deploy (GPU)" \
      org.opencontainers.image.description="Serves LCT-ResNet bundles with TensorRT and ONNX Runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"


# Last, so that a plain `docker build .` makes this one.
FROM runtime AS cpu
COPY --from=venv-cpu /opt/lct-deploy /opt/lct-deploy
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lct-deploy (CPU)" \
      org.opencontainers.image.description="Serves LCT-ResNet bundles with ONNX Runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
