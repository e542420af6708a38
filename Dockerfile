# Frostline's command line on processors: the wheel, and torch without CUDA.
#
#     docker build -t frostline .
#     docker run --rm frostline demo
#     docker run --rm -v "$PWD:/work" frostline train photos --model resnet18 --out runs/photos
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# The default torch on Linux brings gigabytes of CUDA. For GPUs: --build-arg
# TORCH_INDEX=https://download.pytorch.org/whl/cu130, and docker run --gpus all.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=demo,timm,hf,text,tiff,onnx
COPY constraints.txt /tmp/
RUN grep -E '^torch(vision)?==' /tmp/constraints.txt >/tmp/torch.txt \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" --requirement /tmp/torch.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "$(echo /wheels/frostline-*.whl)[$EXTRAS]" \
    && useradd --create-home --uid 1000 frostline \
    && install --directory --owner=1000 /work
USER 1000
WORKDIR /work
ENTRYPOINT ["frostline"]
CMD ["--help"]
