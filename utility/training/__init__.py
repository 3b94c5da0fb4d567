"""Networks trained: configuration, plan, loader, losses, the loop, what a run folder holds."""
