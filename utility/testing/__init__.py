"""Networks measured on scenes whose truth is known."""
