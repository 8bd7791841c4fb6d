"""The mathematics of flow language models: JAX in, JAX out; no flax, no config, no I/O."""
