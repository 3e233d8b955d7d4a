"""Device "cuda" without CUDA: tensors that have a shape, a type and a device, but no values.

`runtime.cpp` lets torch's dispatcher and autograd take such a device for there, `memory` is what computes nothing and
notes everything, `module` answers as ``torch.cuda`` does, and `plugin` puts them in place before anything else is imported.
"""
