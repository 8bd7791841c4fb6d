"""Models for others: one jump as a graph that runs without this library, or a folder for a hub.

jump.py          what is exported: state and times in; next state, tokens, confidence out
onnx_graph.py    an ONNX graph while it is made; onnx_model.py: the jump as one
stablehlo.py     the jump as JAX itself writes it
folder.py        the exported folder: the graph, and what else a caller needs
hub.py           a folder for a model hub, with its card; its layout is `interop/release.py`
sample_onnx.py, sample_stablehlo.py   the examples in such folders, which import nothing of ours
"""
