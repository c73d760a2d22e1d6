# bigmodel for TPU hosts: docker build --tag=REGISTRY/bigmodel:TAG .    (used by `bigmodel launch --engine=gke`)
# Versions are requirements.lock's; libtpu's is the one that the lock's jax asks for.
FROM python:3.12-slim
WORKDIR /bigmodel
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY bigmodel bigmodel
COPY experiments experiments
COPY sweeps sweeps
RUN python -m pip install --no-cache-dir -c requirements.lock '.[tpu,s3]'
# A worker is told to stop by SIGTERM, which it has to get itself: no shell, no ENTRYPOINT.
CMD ["bigmodel", "--help"]
