"""What steps of optimizers and of training cost."""
