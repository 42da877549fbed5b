# nephi_pipe as a BIDS App, for the CPU; docs/containers.md says how to build, fetch and run it.
#
#   docker build -t nephi_pipe .
#
# Build arguments:
#   TORCH     cpu (default), or the CUDA that PyTorch is built with: cu126, cu130 ...; empty: the
#             PyTorch that pip would take
#   BASE      another image with Python 3.10 to 3.13 and its venv module
#   PIP_ARGS  for pip and uv: an index of your own, or '--no-index --find-links /wheels' together
#             with the build context wheels=FOLDER, for a build without a network
#   VERSION, REVISION   what the labels say

ARG BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# Replaced by --build-context wheels=FOLDER.
FROM scratch AS wheels

FROM ${BASE} AS build
ARG PIP_ARGS=""
ARG TORCH=cpu
ARG VERSION=0.1.0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_LINK_MODE=copy \
    PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
# What is needed comes before the source: a change of the source does not install torch again.
# uv, unlike pip, knows where PyTorch keeps the builds for each processor.
COPY constraints.txt setup.cfg ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    python3 -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --quiet ${PIP_ARGS} uv==0.13.9 \
    && python3 -m venv --without-pip /opt/nephi \
    && python3 -c "import configparser as c; p = c.ConfigParser(); p.read('setup.cfg'); \
print(p['options']['install_requires'], p['options.extras_require']['brainmask'])" \
        > /tmp/requirements.txt \
    && /opt/uv/bin/uv pip install --quiet --python /opt/nephi \
        ${TORCH:+--torch-backend ${TORCH}} ${PIP_ARGS} -c constraints.txt \
        -r /tmp/requirements.txt 'setuptools>=70.1'
# What only developers of these packages need goes: tests, headers, static libraries. The rest is
# compiled now, since nothing can be written beside it later.
RUN cd /opt/nephi/lib/python3.*/site-packages \
    && find . -type d \( -name tests -o -path ./torch/test -o -path ./torch/include \
        -o -path ./torch/share \) -prune -exec rm -rf {} + \
    && find . -type f \( -name '*.a' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \) -delete \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -name __pycache__ -prune -exec rm -rf {} + \
    && /opt/nephi/bin/python -m compileall -q -j 0 -x torch/testing/_internal \
        --invalidation-mode unchecked-hash .
COPY . .
RUN /opt/uv/bin/uv pip install --quiet --python /opt/nephi --offline --no-deps \
        --no-build-isolation . \
    && /opt/nephi/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        /opt/nephi/lib/python3.*/site-packages/nephi_pipe \
    && test "$(/opt/nephi/bin/nephi-pipe --version)" = "nephi-pipe ${VERSION}"

FROM ${BASE}
ARG BASE
ARG TORCH=cpu
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="nephi_pipe" \
      org.opencontainers.image.description="Medical image registration with neural deformation fields: a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.authors="nephi_pipe developers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE}" \
      nephi_pipe.torch="${TORCH}"
COPY --from=build /opt/nephi /opt/nephi
# Any user id: a home that everybody may write to, and nothing read from a user's own site.
RUN mkdir -p /home/nephi && chmod 1777 /home/nephi
ENV PATH=/opt/nephi/bin:$PATH \
    HOME=/home/nephi \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    NEPHI_IMAGE=nephi_pipe:${VERSION} \
    NIPYPE_NO_ET=1 \
    NO_ET=1 \
    OMP_NUM_THREADS=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1
WORKDIR /tmp
ENTRYPOINT ["nephi-pipe"]
CMD ["--help"]
