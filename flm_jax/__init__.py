"""Flow language models in JAX: train, distil, evaluate and sample text written in one evaluation.

Shape legend (suffixes of variable names; a scalar has no suffix):

    B  sequences in the batch        L  positions of a sequence      V  vocabulary entries
    D  width of the backbone         W  width of all embedding tables side by side
    H  attention heads               K  width of one head            C  width of conditioning
    N  tokens, B*L flattened         S  sampler steps

Symbols follow the paper (arXiv 2602.16813): ``t`` is the interpolation time (0 = noise, 1 = data),
``tau`` the reparametrised time that the network sees, ``s <= u <= t`` the times of a flow map.
"""
