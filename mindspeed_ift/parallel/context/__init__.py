"""Context parallelism: ranks share the positions of a row, whatever its samples are.

Read `split` (which positions a rank holds), `plan` (what it computes, from the boundaries), then `ulysses`, `ring` and
`gather`, and `attention`, which picks one.
"""
