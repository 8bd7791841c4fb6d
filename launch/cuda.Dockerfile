# The image for NVIDIA GPUs (Kubernetes, or docker run --gpus=all). CUDA comes with the wheels of
# JAX; the machine needs only the driver.
#
#   docker build -f launch/cuda.Dockerfile -t flm_jax:cuda .
#   docker run --gpus=all --shm-size=8g -v "$PWD/runs:/runs" flm_jax:cuda \
#       python -m flm_jax.main --config=configs/quickstart.py --workdir=/runs/quickstart
FROM python:3.12-slim
WORKDIR /flm_jax
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY flm_jax flm_jax
COPY configs configs
RUN pip install --no-cache-dir -e ".[cuda]"
ENV PYTHONUNBUFFERED=1
ENTRYPOINT []
CMD ["python", "-m", "flm_jax.main", "--help"]
