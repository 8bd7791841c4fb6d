"""One jump of a model as a file that runs without this library.

jump.py          what is exported: state and times in; next state, tokens, confidence out
onnx_graph.py    an ONNX graph while it is made; onnx_model.py: the jump as one
stablehlo.py     the jump as JAX itself writes it
folder.py        the exported folder: the graph, and what else a caller needs
sample_onnx.py, sample_stablehlo.py   the examples in such folders, which import nothing of ours
"""
