"""The ONNX graph in onnxruntime says what the jump says in JAX: every option, any sizes."""

import numpy as np
import pytest
from exported import VARIANTS, computed, inputs, model

from flm_jax.export import jump as jump_lib
from flm_jax.export import onnx_model

onnx = pytest.importorskip("onnx", reason="the extra [export] writes ONNX")
runtime = pytest.importorskip("onnxruntime", reason="it runs the graphs")


def session(folder):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(folder / onnx_model.GRAPH_FILE), options)


def check(run, jump, batch, length):
    x = inputs(jump, batch, length)
    found = run.run(None, x)
    for name, one, other in zip(jump_lib.OUTPUTS, found, computed(jump, x), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, atol=5e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_graph_is_the_jump(tmp_path, name):
    jump = jump_lib.of_model(model(tmp_path, **VARIANTS[name]))
    onnx_model.write(jump, tmp_path)
    run = session(tmp_path)
    assert [one.name for one in run.get_inputs()] == list(jump.inputs)
    check(run, jump, 3, 7)
    if name == "modern":
        check(run, jump, 1, 11)
    if name == "plain":
        with pytest.raises(Exception, match="[Aa]xis|dimension|broadcast"):
            run.run(None, inputs(jump, 1, 13))  # more than there are positions


def test_fixed_sizes_and_weights_beside_the_graph(tmp_path):
    jump = jump_lib.of_model(model(tmp_path, two_times=True), batch=2, length=5)
    onnx_model.write(jump, tmp_path, "words", {"key": "value"}, inline=0)
    assert (tmp_path / "jump.onnx.data").stat().st_size > (tmp_path / "jump.onnx").stat().st_size
    read = onnx.load(tmp_path / "jump.onnx", load_external_data=False)
    assert (read.graph.doc_string, read.metadata_props[0].value) == ("words", "value")
    run = session(tmp_path)
    check(run, jump, 2, 5)
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run.run(None, inputs(jump, 3, 5))


def test_the_clock_in_the_graph_is_that_of_the_model_to_the_last_digit(tmp_path):
    """t is seen in next_state alone: of a state of ones it is keep + add * mean."""
    jump = jump_lib.of_model(model(tmp_path, two_times=True))
    onnx_model.write(jump, tmp_path)
    x = inputs(jump, 64, 1)
    x["tau_s"][:] = 0.0
    x["tau_t"] = np.concatenate([np.linspace(0, 1, 33), 1 - 2.0 ** -np.arange(1, 32)]).astype("f")
    after, _, _, mean = session(tmp_path).run(None, x)
    state, after, mean = (a.astype(np.float64).sum(-1) for a in (x["state"], after, mean))
    t = ((after - state) / (mean - state))[:, 0]
    np.testing.assert_allclose(t, jump.portable.clock.to_t(x["tau_t"]), atol=3e-6)
