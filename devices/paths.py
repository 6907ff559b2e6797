"""The modules of a transformer that its blocks are, by the `stacks` of backbones/contract.py."""


def paths_of(block):
    """Paths of one block's modules: most blocks are one module, some are several."""
    return (block,) if isinstance(block, str) else tuple(block)


def all_paths(stacks):
    """Paths of the modules of all blocks, in order."""
    return [path for blocks in stacks for block in blocks for path in paths_of(block)]
