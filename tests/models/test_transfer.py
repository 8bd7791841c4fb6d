"""A student that starts from a masked diffusion model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.flow import discrete
from flm_jax.models import transfer

B, L, V = tiny.B, tiny.L, tiny.V


@pytest.mark.parametrize("tied_student", [False, True])
def test_a_tied_head_becomes_one_of_its_own_where_the_student_has_one(tied_student):
    source_model = tiny.model(tied_head=True, mask_token=True)
    student = tiny.model(tied_head=tied_student)
    source, fresh = tiny.params(source_model, 1), tiny.params(student, 2)
    params = transfer.student_from(fresh, transfer.without_mask(source))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    assert ("kernel" in params["head"]) != tied_student
    h_BLD, tau_B = jax.random.normal(jax.random.key(0), (B, L, tiny.D)), jnp.full(B, 0.3)
    logits = [
        net.head.raw(net(h_BLD, tau_B).posterior.features_BLD)[..., :V]
        for net in (student.net(params), source_model.net(source))
    ]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    assert np.ptp(logits[0]) > 0.1


def test_a_student_of_a_masked_model_is_that_model_at_time_zero_without_its_mask():
    masked = tiny.model(mask_token=True, logit_cap=0.0)
    student = tiny.model(two_times=True, logit_cap=0.0)
    source, fresh = tiny.params(masked, 1), tiny.params(student, 2)
    params = transfer.student_from(fresh, transfer.without_mask(source))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_array_equal(params["embed"]["table"], source["embed"]["table"][:V])
    assert "time_embed_to" not in source and source["embed"]["table"].shape[0] == V + 1

    tokens_BL = tiny.batch().tokens_BL
    shown = discrete.predict_masked(masked.net(source), tokens_BL, jnp.zeros((B, L), bool))
    zero, h_BLD = jnp.zeros(B), params["embed"]["table"][tokens_BL]
    for tau_t in (zero, zero + 0.7):  # the second time is not heard yet
        ours = student.net(params)(h_BLD, zero, tau_t).posterior
        np.testing.assert_allclose(ours.dense(), shown.posterior.dense(), rtol=1e-4, atol=1e-6)
    heard = transfer.student_from(fresh, transfer.without_mask(source), second_time_heard=True)
    np.testing.assert_array_equal(
        heard["time_embed_to"]["out"]["kernel"], fresh["time_embed_to"]["out"]["kernel"]
    )
    assert not params["time_embed_to"]["out"]["kernel"].any()
