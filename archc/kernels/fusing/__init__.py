"""Which equations of a body one launch computes: convolutions, products, and a whole mixer for one token."""
