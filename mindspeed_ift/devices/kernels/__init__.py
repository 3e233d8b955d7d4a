"""One signature a kernel, one file a device; `reference` is the plain torch twin that all others are compared with."""
