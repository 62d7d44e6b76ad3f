"""Tool calls recognised without a wrapper: rules (data), a state machine (pure), and what places them."""
