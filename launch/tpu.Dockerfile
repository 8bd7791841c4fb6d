# The image for TPU slices on Kubernetes (gke_jobset.yaml, xpk.sh).
#
#   docker build -f launch/tpu.Dockerfile -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/flm_jax:tpu .
#   docker push REGION-docker.pkg.dev/PROJECT/REPOSITORY/flm_jax:tpu
FROM python:3.12-slim
WORKDIR /flm_jax
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY flm_jax flm_jax
COPY configs configs
RUN pip install --no-cache-dir -e ".[tpu]"
ENV PYTHONUNBUFFERED=1
# No shell around it: signals reach the program, which then saves.
ENTRYPOINT []
CMD ["python", "-m", "flm_jax.main", "--help"]
