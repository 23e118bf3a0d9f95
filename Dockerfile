# Triton with the unified backend.
#
#   docker build -t triton-unified .                       engines on the CPU
#   docker build -t triton-unified --build-arg EXTRA=gpu . ONNX Runtime with CUDA 13, as in the base image
#   docker run --rm --shm-size=2g -p 8000-8002:8000-8002 -v "$PWD/models:/models:ro" -v unified:/var/cache/triton-unified triton-unified
FROM nvcr.io/nvidia/tritonserver:25.10-py3

ARG EXTRA=cpu

LABEL org.opencontainers.image.title="triton-unified-backend" \
      org.opencontainers.image.description="Drop any trained model into a Triton model repository and it serves" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tritonserver:25.10-py3"

# An environment of its own: Triton's Python, and the models that other backends run in it, stay as they are.
# Without pip: that of the base image installs into it, and python3-venv need not be there.
COPY requirements/image-${EXTRA}.lock /opt/unified-src/requirements.lock
RUN python3 -m venv --without-pip /opt/unified \
    && python3 -m pip --python /opt/unified/bin/python install --no-cache-dir --no-deps --require-hashes \
        --requirement /opt/unified-src/requirements.lock

COPY pyproject.toml README.md LICENSE CHANGELOG.md /opt/unified-src/
COPY backend /opt/unified-src/backend
RUN python3 -m pip --python /opt/unified/bin/python install --no-cache-dir --no-deps --no-build-isolation \
        /opt/unified-src \
    && /opt/unified/bin/triton-unified install --backends /opt/tritonserver/backends --python /opt/unified \
    && ln -s /opt/unified/bin/triton-unified /usr/local/bin/triton-unified \
    && rm -rf /opt/unified-src \
    && install -d -o 1000 -g 1000 /var/cache/triton-unified /models

# What converts models of frameworks that nothing here runs, outside the volume. `--build-arg TOOLCHAINS=` leaves it out
# (1.7 GB): then only engines that take such files as they are serve them, or what the cache holds.
ARG TOOLCHAINS="tensorflow"
ENV TRITON_UNIFIED_TOOLCHAIN_DIR=/opt/unified-toolchains
RUN install -d -o 1000 -g 1000 "$TRITON_UNIFIED_TOOLCHAIN_DIR" \
    && for name in $TOOLCHAINS; do PIP_NO_CACHE_DIR=1 triton-unified toolchain install "$name"; done

# Converted models and built engines: kept in a volume, the next start finds them.
ENV TRITON_UNIFIED_CACHE=/var/cache/triton-unified
VOLUME /var/cache/triton-unified

USER 1000:1000
EXPOSE 8000 8001 8002

# Nothing listens before every model is loaded, and a first build may take minutes: failures do not count until then.
HEALTHCHECK --start-period=30m --interval=10s --timeout=5s --retries=3 \
    CMD ["/opt/unified/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]

# One bad model neither stops the start nor makes the server unready for the good ones.
CMD ["tritonserver", "--model-repository=/models", "--exit-on-error=false", "--strict-readiness=false"]
