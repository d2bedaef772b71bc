"""The commands: one file each, named after the command, with `Options`, ``run(options) -> answer`` and ``text(answer)``.

The answer is plain data, which --json prints. A command file imports at its head only what its options need, since parsing and
--help should not wait for PyTorch; it imports the rest in its functions. Files that several commands share, and larger parts of one
(``bench_kernels``, ``render_film``), import as usual.
"""
