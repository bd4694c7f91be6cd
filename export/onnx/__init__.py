"""ONNX files as evidence: read with suspicion, counted by shapes of our own, written with a seal.

file      read, clean, stamp and seal a file
wire      how much a file would take to read, before it is read
shapes    one walk over all operators: shapes, the arithmetic of shapes, multiply-accumulates
fold      that arithmetic
contrib   shapes of operators that onnx has no rules for
axes      what the free axes of the inputs are: the batch, or unknown
stored    which of the numbers in a file are parameters
memory    the peak of its activations
count     all of it together
"""
