"""Who holds what: process groups from a layout. Nobody else reads Megatron's parallel_state."""
