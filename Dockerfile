# raymat in an image: `docker build -t raymat:cpu .`, and with CUDA `docker build --build-arg TORCH=cuda -t raymat:cuda .`
# CUDA comes with torch's wheels; the host has the driver and NVIDIA's container toolkit. The user is 1000, without root's rights.
FROM python:3.11-slim AS build
ARG TORCH=cpu
ARG EXTRAS=aws,gcs,gpu
RUN python -m venv /opt/env
ENV PATH=/opt/env/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# What raymat needs, apart from raymat: this layer stays while these files do.
RUN mkdir raymat && touch raymat/__init__.py \
    && if [ "$TORCH" = cpu ]; then \
        pip install --index-url https://download.pytorch.org/whl/cpu "$(grep -oE '^torch==[^ ;]+' constraints.txt)"; fi \
    && pip install -c constraints.txt ".[$EXTRAS]" && pip uninstall -qy raymat
COPY raymat raymat
RUN pip install --no-deps .

FROM python:3.11-slim
# pgrep for deploy/node, wget for KubeRay's probes.
RUN apt-get update && apt-get install -qy --no-install-recommends procps wget && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home raymat && mkdir -p /nvme /home/raymat/.ray \
    && chown raymat /nvme /home/raymat/.ray && chmod 700 /home/raymat/.ray
COPY --from=build /opt/env /opt/env
WORKDIR /opt/raymat
COPY jobs jobs
COPY deploy/node deploy/node
COPY LICENSE constraints.txt ./
ENV PATH=/opt/env/bin:$PATH
USER 1000
CMD ["raymat", "--help"]
