"""Channel attention found in any ONNX graph by what it computes, and given its one node of domain `lct`.

    candidates                 the pattern: a Mul that scales the channels of X by a gate made of X
    site                       where in between the spatial mean and the input of the sigmoid are
    linear_context_transform   check: is it an LCT, of which groups, ε, w and b? rewrite
    squeeze_excitation         check: is it an SE or SE+, of which layers? rewrite
    fuse                       all candidates of a graph, and the certificate

Exporters spell the same attention in many ways. So no operators are compared: the piece of graph is cut
out and run in float64, its parameters are read off its answers, and it is fused only where the node with
these parameters gives the same answers on random contexts.
"""
